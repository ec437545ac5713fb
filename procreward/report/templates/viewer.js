"use strict";
// One episode: video, curve, what the model said, what was flagged.
(() => {
  const { el, get } = Report;
  let row = null, trace = null, player = null, chart = null, returns = [], shownQuery = null, hidden = new Set(), noting = 0;

  const stepNow = () => (player ? Math.min(trace ? trace.progress.length - 1 : row.length, Math.floor(player.step + 1e-6)) : 0);

  /** Put the place into the address, without a new entry in the history; browsers count how often. */
  function note() {
    clearTimeout(noting);
    noting = setTimeout(() => {
      history.replaceState(null, "", `${Report.link(row)}&t=${player.time.toFixed(2)}`);
    }, 150);
  }

  function open(next, seconds) {
    if (row !== next) {
      close();
      row = next;
      trace = Report.trace(row);
      build();
    }
    seek(Math.round(seconds * player.fps), false);
  }

  function close() {
    clearTimeout(noting);
    player?.close();
    chart?.close();
    row = trace = player = chart = shownQuery = null;
  }

  function build() {
    get("episode-name").textContent = row.name;
    get("episode-task").textContent = row.task;
    document.title = `${row.name} · ${Report.data.title} · procreward report`;
    returns = [];
    (trace?.reward || []).forEach((value, i) => returns.push((returns[i - 1] || 0) + (value || 0)));
    player = new Report.Player(row, row.length, moved, playing);
    player.setSpeed(Number(get("speed").value));
    const holder = get("chart");
    holder.setAttribute("aria-valuemax", row.length);
    if (trace) {
      chart = new Report.Chart(holder, trace, (step) => { player.pause(); seek(step); });
      chart.hidden = new Set(hidden);
      chart.draw();
    } else holder.replaceChildren(el("p", { class: "faint" }, "The curves of this episode were left out of the page."));
    legend();
    flags();
    figures();
    rail();
    get("episode-name").focus({ preventScroll: true });
  }

  function moved(step) {
    chart?.setCursor(step);
    const whole = stepNow();
    get("clock").textContent = `step ${whole} / ${row.length} · ${(whole / player.fps).toFixed(1)} s`;
    const holder = get("chart"), reading = trace?.progress[whole] ?? null;
    holder.setAttribute("aria-valuenow", whole);
    holder.setAttribute("aria-valuetext", `step ${whole}, progress ${reading === null ? "unknown" : Report.percent(reading)}`);
    if (trace) { readouts(whole); answer(whole); }
  }

  function playing(state) {
    const button = get("play");
    button.replaceChildren(Report.icon(state ? "pause" : "play"));
    button.setAttribute("aria-label", state ? "Pause" : "Play");
    if (!state && row) note();
  }

  function seek(step, noted = true) {
    player.seek(step);
    if (noted) note();
  }

  function readouts(step) {
    const complete = trace.complete.some(([start, end]) => step >= start && step <= end);
    const items = [
      ["Progress", trace.progress[step] === null ? "no reading" : Report.percent(trace.progress[step]), "accent"],
      ["Potential", Report.number(trace.potential[step])],
      ["Reward", Report.signed(trace.reward[step], 3), trace.reward[step] > 0 ? "good" : trace.reward[step] < 0 ? "bad" : ""],
      ["Return", Report.signed(returns[step], 3)],
      ["Complete", complete ? "yes" : "no", complete ? "good" : ""],
    ];
    if (trace.truth) items.push(["Truth", Report.percent(trace.truth[step])]);
    get("readouts").replaceChildren(...items.map(([label, value, kind]) =>
      el("div", {}, el("dt", {}, label), el("dd", { class: kind || "" }, value))));
  }

  /** The latest answer at or before a step. */
  function answer(step) {
    let query = null;
    for (const one of trace.queries) { if (one.step > step) break; query = one; }
    if (query === shownQuery && query !== null) { age(query, step); return; }
    shownQuery = query;
    if (query === null) {
      get("answers").replaceChildren(el("p", { class: "faint" }, "The model has not been asked yet."));
      return;
    }
    const blocks = [said(query, "Scorer", query)];
    if (query.judge) blocks.push(said(query, "Judge", query.judge));
    get("answers").replaceChildren(...blocks);
    age(query, step);
  }

  function age(query, step) {
    const holder = get("answers").querySelector(".age");
    if (holder) holder.textContent = step === query.step ? "now" : `held for ${Report.plural(step - query.step, "step")}`;
  }

  function said(query, who, one) {
    const verdicts = [];
    if (one.valid === false) verdicts.push(el("span", { class: "mark invalid" }, one.reason ? `no usable answer: ${one.reason}` : "no usable answer"));
    else if (one.progress !== undefined && one.progress !== null) verdicts.push(el("span", { class: "mark read" }, Report.percent(one.progress)));
    if (one.chance !== undefined) verdicts.push(el("span", { class: "mark" }, `success ${Report.percent(one.chance)}`));
    if (one.complete !== undefined) verdicts.push(el("span", { class: `mark ${one.complete ? "done" : ""}` }, one.complete ? "complete" : "not complete"));
    if (one.spread !== undefined) verdicts.push(el("span", { class: "mark" }, `± ${Report.percent(one.spread, 1)}`));
    const about = [];
    if (one.mode) about.push(one.mode);
    if (who === "Scorer" && query.window) about.push(`saw steps ${[...new Set(query.window)].join(", ")}`);
    const more = Object.entries(one.details || {}).map(([name, value]) => `${name} ${value}`).join(" · ");
    return el("section", { class: "answer", "aria-label": `${who}'s answer` },
      el("header", {},
        el("h3", {}, `${who} at step ${query.step}`),
        who === "Scorer" ? el("span", { class: "age faint" }) : null,
        el("span", { class: "marks" }, verdicts)),
      one.text ? el("pre", { class: "words" }, one.text) : el("p", { class: "faint" }, "No words."),
      more ? el("details", { class: "about faint" }, el("summary", {}, about.join(" · ") || "details"), more)
        : about.length ? el("p", { class: "about faint" }, about.join(" · ")) : null);
  }

  function legend() {
    if (!trace) { get("legend").replaceChildren(); return; }
    const items = [["progress", "Progress read"], ["potential", "Potential"]];
    if (trace.truth) items.push(["truth", "True progress"]);
    items.push(["reward", "Reward"]);
    const toggles = items.map(([name, label]) => {
      const text = name === "potential" && chart.divisor !== 1 ? `${label} ÷ ${chart.divisor.toPrecision(3)}` : label;
      const button = el("button", { type: "button", class: `key ${name}`, "aria-pressed": String(!hidden.has(name)), onclick: () => {
        if (!hidden.delete(name)) hidden.add(name);
        chart.toggle(name);
        button.setAttribute("aria-pressed", String(!hidden.has(name)));
      } }, el("i", { "aria-hidden": "true" }), text);
      return button;
    });
    const signs = [];
    if (trace.success !== null && trace.success !== undefined) signs.push(["success", "Success, as recorded"]);
    if (trace.flags.some((flag) => flag.kind === "invalid")) signs.push(["invalid", "Invalid answer"]);
    get("legend").replaceChildren(...toggles, ...signs.map(([name, label]) =>
      el("span", { class: `key ${name}` }, el("i", { "aria-hidden": "true" }), label)));
  }

  function flags() {
    const words = {
      stall: (flag) => `Stall, steps ${flag.start}–${flag.end}: no more than ${Report.percent(flag.best)}`,
      drop: (flag) => `Drop, steps ${flag.start}–${flag.end}: from ${Report.percent(flag.best)} to ${Report.percent(flag.lowest)}`,
      invalid: (flag) => {
        const query = trace.queries.find((one) => one.step === flag.start);
        const judged = query?.valid && query.judge, reason = judged ? query.judge.reason : query?.reason;
        return `${judged ? "Judge: invalid" : "Invalid"} answer at step ${flag.start}${reason ? `: ${reason}` : ""}`;
      },
    };
    const found = trace ? trace.flags : [], last = row.length;
    // The large negative bar at the end of a success is what people ask about.
    get("remark").hidden = !(trace?.terminated && last > 0 && trace.potential[last] === 0 && trace.potential[last - 1] > 0);
    get("flags").replaceChildren(...found.map((flag) => el("button", {
      type: "button", class: `flag ${flag.kind}`, onclick: () => { player.pause(); seek(flag.start); },
    }, words[flag.kind](flag))));
  }

  function figures() {
    const items = [
      ["Final progress", Report.percent(row.final)],
      ["Complete", Report.completion(row)],
      ["VOC", Report.signed(row.voc)],
      ["Invalid answers", `${row.invalid} of ${row.queries}`],
      ["Return", Report.signed(row.return, 3)],
      ["Steps", row.length.toLocaleString("en")],
    ];
    if (row.error !== null) items.push(["Error", Report.percent(row.error, 1)]);
    get("episode-figures").replaceChildren(...items.map(([label, value]) =>
      el("div", { class: "tile" }, el("dt", {}, label), el("dd", { class: "tile-value" }, value))));
  }

  function rail() {
    const order = around();
    get("rail").replaceChildren(...order.shown.map((one) => el("li", {},
      el("a", { href: Report.link(one), "aria-current": one === row ? "true" : null },
        el("span", { class: "rail-name" }, one.name), el("span", { class: "rail-final" }, Report.percent(one.final)),
        Report.spark(one.spark, 120, 20)))));
    get("rail").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
    get("position").textContent = order.at < 0 ? "" : `${order.at + 1} of ${order.all.length}`;
    get("previous").disabled = order.at <= 0;
    get("next").disabled = order.at < 0 || order.at >= order.all.length - 1;
  }

  /** The table's episodes around this one; all of many would be slow. */
  function around() {
    const all = Report.table.order(), at = all.indexOf(row), from = Math.max(0, at - 30);
    return { all, at, shown: all.slice(from, from + 60) };
  }

  function neighbour(by) {
    const { all, at } = around();
    const target = at < 0 ? all[0] : all[at + by];
    if (target) location.hash = Report.link(target);
  }

  /** Go to the next or previous query. */
  function query(by) {
    player.pause();
    const now = stepNow(), steps = trace ? trace.queries.map((one) => one.step) : [];
    const target = by > 0 ? steps.find((step) => step > now) : steps.filter((step) => step < now).pop();
    seek(target ?? (by > 0 ? row.length : 0));
  }

  Report.viewer = {
    get row() { return row; },
    start(back) {
      const icons = { previous: "up", next: "down", play: "play", "to-previous": "previous", "to-next": "next" };
      for (const [id, name] of Object.entries(icons)) get(id).replaceChildren(Report.icon(name));
      get("back").addEventListener("click", back);
      get("previous").addEventListener("click", () => neighbour(-1));
      get("next").addEventListener("click", () => neighbour(1));
      get("play").addEventListener("click", () => player.toggle());
      get("to-previous").addEventListener("click", () => query(-1));
      get("to-next").addEventListener("click", () => query(1));
      get("speed").addEventListener("change", () => {
        player?.setSpeed(Number(get("speed").value));
        get("speed").blur(); // the space bar is for playing
      });
    },
    open,
    close() {
      if (!row) return;
      close();
      document.title = `${Report.data.title} · procreward report`;
    },
    toggle: () => player.toggle(),
    by(steps) { player.pause(); seek(stepNow() + steps); },
    seek(step) { player.pause(); seek(step); },
    query,
    neighbour,
  };
})();
