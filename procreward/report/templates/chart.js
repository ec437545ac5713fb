"use strict";
// The curve under the video. Time runs in steps; a click or a drag asks to go there.
(() => {
  const { svg, el } = Report;
  const LEFT = 66, RIGHT = 14, TOP = 18, AXIS = 24, GAP = 12, LANE = 14;
  const f = (value) => value.toFixed(1);

  /** Corners of a curve that is held from step to step; unknown values leave gaps. */
  function held(values, x, y) {
    let path = "", before = null;
    values.forEach((value, step) => {
      if (value === null) { before = null; return; }
      if (before === null) path += `M${f(x(step))} ${f(y(value))}`;
      else if (value !== before) path += `H${f(x(step))}V${f(y(value))}`;
      if (step === values.length - 1 || values[step + 1] === null) path += `H${f(x(step))}`;
      before = value;
    });
    return path;
  }

  function straight(values, x, y) {
    let path = "", pen = "M";
    values.forEach((value, step) => {
      if (value === null) { pen = "M"; return; }
      path += `${pen}${f(x(step))} ${f(y(value))}`;
      pen = "L";
    });
    return path;
  }

  /** Steps between round numbers on the axis. */
  function spacing(last, room) {
    const rough = Math.max(1, last / Math.max(1, room / 70)), power = 10 ** Math.floor(Math.log10(rough));
    return Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough));
  }

  class Chart {
    /**
     * @param holder The element it is drawn in.
     * @param trace The curves.
     * @param onSeek Called with the step that was asked for.
     */
    constructor(holder, trace, onSeek) {
      Object.assign(this, { holder, trace, onSeek, at: 0, hidden: new Set() });
      this.last = trace.progress.length - 1;
      const biggest = Report.most(trace.potential.map((value) => Math.abs(value || 0)), 0);
      // With a large scale the potential would push the readings to the floor.
      this.divisor = biggest > 1.5 ? biggest : 1;
      this.low = Report.least(trace.potential.map((value) => (value || 0) / this.divisor), 0);
      this.lanes = this.stretches();
      this.observer = new ResizeObserver(() => this.draw());
      this.observer.observe(holder);
      this.listen();
      this.draw();
    }

    get height() { return (this.holder.clientWidth < 560 ? 236 : 272) + LANE * this.lanes.length; }

    /** What goes on for a while, a lane each: name to first and last steps. */
    stretches() {
      const of = (kind) => this.trace.flags.filter((flag) => flag.kind === kind).map((flag) => [flag.start, flag.end]);
      const asked = this.trace.queries, held = [];
      asked.forEach((query, i) => {
        if (!query.valid) held.push([query.step, i + 1 < asked.length ? asked[i + 1].step : this.last]);
      });
      const complete = this.trace.complete.map(([start, end]) => [start, Math.min(end + 1, this.last)]);
      return [["complete", complete], ["stall", of("stall")], ["drop", of("drop")], ["invalid", held]]
        .filter(([, found]) => found.length);
    }

    x(step) { return LEFT + ((this.width - LEFT - RIGHT) * step) / Math.max(this.last, 1); }
    y(value) { return this.floor - ((this.floor - TOP) * (value - this.low)) / (1 - this.low); }

    stepAt(clientX) {
      const from = this.holder.getBoundingClientRect().left;
      const share = (clientX - from - LEFT) / (this.width - LEFT - RIGHT);
      return Math.round(Math.min(1, Math.max(0, share)) * this.last);
    }

    draw() {
      this.width = Math.max(240, this.holder.clientWidth);
      const rewards = this.hidden.has("reward") ? 0 : 56;
      this.floor = this.height - AXIS - (rewards ? rewards + GAP : 0) - LANE * this.lanes.length - 8;
      const root = svg("svg", { width: this.width, height: this.height, "aria-hidden": "true" });
      root.append(this.patterns(), this.grid(), this.bands(), this.rewards(rewards), this.curves(),
        this.queries(), this.moments());
      this.hoverLine = svg("line", { class: "hover-line", y1: TOP, y2: this.height - AXIS, visibility: "hidden" });
      this.cursor = svg("g", { class: "cursor" },
        svg("line", { y1: TOP - 4, y2: this.height - AXIS }),
        svg("path", { d: `M-6 ${TOP - 16}H6V${TOP - 10}L0 ${TOP - 4}L-6 ${TOP - 10}Z` }),
        svg("circle", { r: 5, class: "cursor-dot" }));
      root.append(this.hoverLine, this.cursor);
      this.tip = el("div", { class: "tip", hidden: true });
      this.holder.replaceChildren(root, this.tip);
      this.setCursor(this.at);
    }

    patterns() {
      return svg("defs", {}, svg("pattern", {
        id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)",
      }, svg("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "hatch" })));
    }

    grid() {
      const group = svg("g", { class: "grid" });
      for (const level of [0, 0.25, 0.5, 0.75, 1]) {
        const y = this.y(level);
        group.append(svg("line", { x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }));
        if (level * 4 % 2 === 0) {
          group.append(svg("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, `${100 * level} %`));
        }
      }
      const every = spacing(this.last, this.width - LEFT - RIGHT), base = this.height - AXIS;
      for (let step = 0; step <= this.last; step += every) {
        group.append(svg("line", { class: "tick", x1: this.x(step), x2: this.x(step), y1: base, y2: base + 4 }),
          svg("text", { x: this.x(step), y: base + 17, "text-anchor": "middle" }, step ? String(step) : "step 0"));
      }
      return group;
    }

    /** Stretches as tints behind the curve, and as bars in lanes of their own below it. */
    bands() {
      const group = svg("g", { class: "bands" });
      this.lanes.forEach(([kind, found], lane) => {
        const top = this.floor + 8 + LANE * lane;
        group.append(svg("text", { x: LEFT - 8, y: top + 9, "text-anchor": "end" }, kind));
        for (const [start, end] of found) {
          const x = this.x(start), width = Math.max(4, this.x(end) - x);
          const fill = kind === "invalid" ? "url(#hatch)" : null;
          if (kind !== "complete") {
            group.append(svg("rect", { x, y: TOP, width, height: this.floor - TOP, class: `tint ${kind}`, fill }));
          }
          group.append(svg("rect", { x, y: top, width, height: 9, rx: 2, class: `lane ${kind}`, fill }));
        }
      });
      return group;
    }

    rewards(room) {
      const group = svg("g", { class: "rewards" });
      if (!room) return group;
      const middle = this.height - AXIS - room / 2, rewards = this.trace.reward;
      const most = Report.most(rewards.map((value) => Math.abs(value || 0)), 1e-12);
      const wide = Math.max(1, Math.min(9, (this.x(1) - this.x(0)) * 0.7));
      const bars = (sign) => rewards.map((value, step) => {
        if (!value || Math.sign(value) !== sign) return "";
        return `M${f(this.x(step))} ${f(middle)}V${f(middle - (value / most) * (room / 2 - 2))}`;
      }).join("");
      group.append(
        svg("line", { class: "zero", x1: LEFT, x2: this.width - RIGHT, y1: middle, y2: middle }),
        svg("path", { class: "gain", d: bars(1), "stroke-width": wide }),
        svg("path", { class: "loss", d: bars(-1), "stroke-width": wide }),
        svg("text", { x: LEFT - 8, y: middle + 4, "text-anchor": "end" }, "reward"));
      return group;
    }

    curves() {
      const group = svg("g", { class: "curves" });
      const add = (name, values, path) => {
        if (values && !this.hidden.has(name)) group.append(svg("path", { class: name, d: path }));
      };
      const x = (step) => this.x(step), y = (value) => this.y(value), { truth, progress } = this.trace;
      const potential = this.trace.potential.map((value) => (value === null ? null : value / this.divisor));
      add("truth", truth, truth && straight(truth, x, y));
      add("potential", potential, held(potential, x, y));
      add("progress", progress, held(progress, x, y));
      return group;
    }

    queries() {
      const group = svg("g", { class: "queries" });
      for (const query of this.trace.queries) {
        const value = query.valid ? query.progress ?? this.trace.progress[query.step] : this.trace.progress[query.step];
        const at = { cx: this.x(query.step), cy: this.y(value ?? 0) };
        group.append(query.valid ? svg("circle", { ...at, r: 3.6, class: "read" }) : svg("circle", { ...at, r: 5, class: "unread" }));
      }
      return group;
    }

    /** Where the environment or the dataset says that it succeeded. */
    moments() {
      const group = svg("g", { class: "moments" }), success = this.trace.success;
      if (success !== null && success !== undefined) {
        const x = this.x(success);
        group.append(svg("line", { class: "success", x1: x, x2: x, y1: TOP, y2: this.floor }));
      }
      return group;
    }

    listen() {
      this.abort = new AbortController();
      const on = (name, handler) => this.holder.addEventListener(name, handler, { signal: this.abort.signal });
      let dragging = false;
      on("pointerdown", (event) => {
        if (event.button !== 0) return;
        dragging = true;
        this.holder.setPointerCapture(event.pointerId);
        this.onSeek(this.stepAt(event.clientX));
      });
      on("pointermove", (event) => {
        const step = this.stepAt(event.clientX);
        this.hover(step);
        if (dragging) this.onSeek(step);
      });
      const stop = () => { dragging = false; };
      on("pointerup", stop);
      on("pointercancel", stop);
      on("pointerleave", () => this.hover(null));
    }

    hover(step) {
      this.tip.hidden = step === null;
      this.hoverLine.setAttribute("visibility", step === null ? "hidden" : "visible");
      if (step === null) return;
      const x = this.x(step);
      this.hoverLine.setAttribute("x1", x);
      this.hoverLine.setAttribute("x2", x);
      const { progress, reward } = this.trace;
      this.tip.replaceChildren(el("strong", {}, `step ${step}`),
        ` ${progress[step] === null ? "no reading" : Report.percent(progress[step])} · ${Report.signed(reward[step], 3)}`);
      this.tip.style.left = `${Math.min(this.width - 160, Math.max(LEFT, x + 10))}px`;
    }

    setCursor(step) {
      this.at = step;
      const whole = Math.min(this.last, Math.floor(step + 1e-6)), value = this.trace.progress[whole];
      this.cursor.setAttribute("transform", `translate(${f(this.x(step))} 0)`);
      const dot = this.cursor.lastChild;
      dot.setAttribute("visibility", value === null ? "hidden" : "visible");
      dot.setAttribute("cy", this.y(value ?? 0));
    }

    toggle(name) {
      if (!this.hidden.delete(name)) this.hidden.add(name);
      this.draw();
    }

    close() {
      this.observer.disconnect();
      this.abort.abort();
      this.holder.replaceChildren();
    }
  }

  Report.Chart = Chart;
})();
