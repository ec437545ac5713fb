"use strict";
// The histograms; a bar that is pressed filters the table.
(() => {
  const { el, get, rows } = Report;
  const chosen = new Map();

  /** Equal bins over [low, high] with round edges where the range is free. */
  function edges(values) {
    const low = Report.least(values, Infinity), high = Report.most(values, -Infinity);
    if (low === high) return [-2, -1, 0, 1, 2, 3].map((n) => low + n).filter((edge) => edge >= 0);
    const rough = (high - low) / 10, power = 10 ** Math.floor(Math.log10(rough));
    const step = Math.max(1, [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough));
    const found = [];
    for (let edge = Math.floor(low / step) * step; ; edge += step) {
      found.push(edge);
      if (edge > high) return found;
    }
  }

  function even(low, high, count) {
    return Array.from({ length: count + 1 }, (_, i) => low + ((high - low) * i) / count);
  }

  function binned(name, title, value, marks, label) {
    const bins = marks.slice(1).map((end, i) => ({
      label: `${label(marks[i])} to ${label(end)}`,
      holds: (row) => {
        const found = value(row), last = i === marks.length - 2;
        return found !== null && found >= marks[i] - 1e-9 && (found < end - 1e-9 || (last && found <= end + 1e-9));
      },
    }));
    const missing = rows.filter((row) => value(row) === null).length;
    const middle = marks.length % 2 ? label(marks[(marks.length - 1) / 2]) : "";
    return { name, title, bins, missing, axis: [label(marks[0]), middle, label(marks[marks.length - 1])] };
  }

  function histograms() {
    const percent = (value) => `${Math.round(100 * value)} %`;
    const lengths = rows.map((row) => row.length);
    const ends = lengths.length ? edges(lengths) : [0, 1];
    return [
      binned("final", "Final progress", (row) => row.final, even(0, 1, 10), percent),
      binned("voc", "VOC", (row) => row.voc, even(-1, 1, 10), (value) => Report.signed(value, 1)),
      binned("length", "Length in steps", (row) => row.length, ends, (value) => String(Math.round(value))),
      {
        name: "completion", title: "Completion", missing: 0, axis: null, bins: [
          { label: "complete", holds: (row) => row.complete !== null && row.held },
          { label: "lost again", holds: (row) => row.complete !== null && !row.held },
          { label: "not complete", holds: (row) => row.complete === null },
        ],
      },
    ];
  }

  function card(histogram) {
    const counts = histogram.bins.map((bin) => rows.filter(bin.holds).length);
    const most = Report.most(counts, 1);
    const bars = histogram.bins.map((bin, i) => {
      const label = `${histogram.title} ${bin.label}: ${Report.plural(counts[i], "episode")}`;
      const bar = el("button", {
        type: "button", class: "bar", title: label, "aria-label": label, "aria-pressed": "false",
        disabled: counts[i] === 0,
        onclick: () => press(histogram, i),
      }, el("span", { class: "bar-count" }, counts[i] ? String(counts[i]) : ""),
      el("span", { class: "bar-fill" }));
      bar.lastChild.style.height = `${(100 * counts[i]) / most}%`;
      return bar;
    });
    const axis = histogram.axis || histogram.bins.map((bin) => bin.label);
    histogram.bars = bars;
    return el("section", { class: "card histogram", "aria-label": histogram.title },
      el("h3", {}, histogram.title,
        histogram.missing ? el("span", { class: "faint" }, ` · ${histogram.missing} unknown`) : null),
      el("div", { class: histogram.axis ? "bars" : "bars few" }, bars),
      el("div", { class: histogram.axis ? "axis" : "axis each", "aria-hidden": "true" },
        axis.map((text) => el("span", {}, text))));
  }

  let all = [];

  function press(histogram, index) {
    if (chosen.get(histogram.name)?.index === index) chosen.delete(histogram.name);
    else chosen.set(histogram.name, { index, title: histogram.title, bin: histogram.bins[index] });
    show();
    Report.table.render();
  }

  function show() {
    for (const histogram of all) {
      const index = chosen.get(histogram.name)?.index;
      histogram.bars.forEach((bar, i) => bar.setAttribute("aria-pressed", String(i === index)));
    }
    get("chips").replaceChildren(...[...chosen].map(([name, { title, bin }]) => el("button", {
      type: "button", class: "chip", "aria-label": `Remove the filter ${title} ${bin.label}`,
      onclick: () => { chosen.delete(name); show(); Report.table.render(); },
    }, `${title}: ${bin.label} ✕`)));
  }

  Report.overview = {
    start() {
      all = histograms();
      get("histograms").replaceChildren(...all.map(card));
    },
    /** Whether an episode is in all bars that are pressed. */
    holds: (row) => [...chosen.values()].every(({ bin }) => bin.holds(row)),
    clear() { chosen.clear(); show(); },
  };
})();
