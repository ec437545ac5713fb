"use strict";
// Plays an episode: its video, or a clock where it has none. One place says which step it is.
(() => {
  const { el, get } = Report;
  const WITHOUT_VIDEO_FPS = 10;

  class Player {
    /**
     * @param row The episode.
     * @param steps Its last step.
     * @param onMove Called with the step (with a fraction while it plays) after every change.
     * @param onState Called when it begins to play or stops.
     */
    constructor(row, steps, onMove, onState) {
      Object.assign(this, { row, steps, onMove, onState, step: 0, playing: false, video: null, url: null });
      this.fps = row.clip ? row.clip.fps : WITHOUT_VIDEO_FPS;
      this.speed = 1;
      this.request = 0;
      const box = get("video-box");
      box.classList.toggle("empty", !row.clip);
      if (!row.clip) {
        box.replaceChildren(el("p", {}, "The page has no video of this episode."));
        return;
      }
      this.url = Report.clipUrl(row);
      this.video = el("video", {
        src: this.url, muted: true, playsinline: true, preload: "auto", tabindex: "-1",
        "aria-label": `Video of ${row.name}`,
        onended: () => { this.pause(); this.arrive(this.steps); },
        onclick: () => this.toggle(),
        onerror: () => this.fail(),
      });
      this.video.muted = true;
      box.replaceChildren(this.video);
    }

    get lastFrame() { return this.row.clip ? this.row.clip.frames - 1 : this.steps; }
    get time() { return this.step / this.fps; }

    /** Go to a step; the last step may have no picture of its own. */
    seek(step) {
      const target = Math.min(this.steps, Math.max(0, step));
      if (this.video) this.video.currentTime = (Math.min(Math.round(target), this.lastFrame) + 0.5) / this.fps;
      this.arrive(target);
      this.clock = { from: target, at: performance.now() };
    }

    arrive(step) {
      this.step = step;
      this.onMove(step);
    }

    setSpeed(speed) {
      this.speed = speed;
      if (this.video) this.video.playbackRate = speed;
      this.clock = { from: this.step, at: performance.now() };
    }

    toggle() { if (this.playing) this.pause(); else this.play(); }

    play() {
      if (Math.floor(this.step) >= Math.min(this.steps, this.lastFrame)) this.seek(0);
      this.playing = true;
      this.clock = { from: this.step, at: performance.now() };
      if (this.video) {
        this.video.playbackRate = this.speed;
        this.video.play().catch(() => this.pause());
      }
      this.onState(true);
      this.follow();
    }

    pause() {
      if (!this.playing) return;
      this.playing = false;
      cancelAnimationFrame(this.request);
      if (this.video) {
        this.video.pause();
        this.look();
      }
      this.onState(false);
    }

    follow() {
      this.request = requestAnimationFrame(() => {
        if (!this.playing) return;
        if (this.video) this.look();
        else if (!this.tick()) return;
        this.follow();
      });
    }

    /** Take the step from the video; a picture is at its place when half of its time is over. */
    look() {
      this.arrive(Math.min(this.lastFrame, Math.max(0, this.video.currentTime * this.fps - 0.5)));
    }

    /** Without H.264 in the browser the curve is walked through by a clock. */
    fail() {
      if (!this.url || !this.video) return;
      this.pause();
      this.video = null;
      get("video-box").classList.add("empty");
      get("video-box").replaceChildren(el("p", {}, "This browser cannot play the video (H.264)."));
    }

    tick() {
      const passed = (performance.now() - this.clock.at) / 1000;
      const step = this.clock.from + passed * this.fps * this.speed;
      this.arrive(Math.min(step, this.steps));
      if (step < this.steps) return true;
      this.pause();
      return false;
    }

    close() {
      this.pause();
      const { video, url } = this;
      this.video = this.url = null;
      if (video) { video.removeAttribute("src"); video.load(); }
      if (url) URL.revokeObjectURL(url);
      get("video-box").replaceChildren();
    }
  }

  Report.Player = Player;
})();
