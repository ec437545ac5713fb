"use strict";
// What the other scripts share: the data, elements, numbers in words.
const Report = {};

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const traces = new Map();

  /** Make an element. Texts become text nodes, so nothing that was recorded is read as HTML. */
  function build(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  }

  Report.data = data;
  Report.rows = data.rows.map((row, place) => ({ ...row, place, clip: data.clips[place] || null }));
  Report.byKey = new Map(Report.rows.map((row) => [row.key, row]));

  Report.get = (id) => document.getElementById(id);
  Report.el = (tag, attributes, ...children) =>
    build(document.createElement(tag), attributes, children);
  Report.svg = (tag, attributes, ...children) =>
    build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  /** The curves of an episode, or null where they were left out. */
  Report.trace = (row) => {
    if (!traces.has(row.place)) {
      const holder = Report.get(`trace-${row.place}`);
      traces.set(row.place, holder ? JSON.parse(holder.textContent) : null);
    }
    return traces.get(row.place);
  };

  /** A URL of the episode's video; the caller revokes it. */
  Report.clipUrl = (row) => {
    const text = atob(Report.get(`clip-${row.place}`).textContent.trim());
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  };

  const minus = (text) => text.replace("-", "−");
  Report.percent = (value, digits = 0) =>
    value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`;
  Report.signed = (value, digits = 2) => {
    if (value === null || value === undefined) return "–";
    const text = value.toFixed(digits);
    return Number(text) > 0 ? `+${text}` : minus(Number(text) === 0 ? (0).toFixed(digits) : text);
  };
  Report.number = (value, digits = 3) =>
    value === null || value === undefined ? "–" : minus(value.toFixed(digits));
  Report.rate = (row) => (row.queries ? row.invalid / row.queries : null);
  Report.plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

  Report.completion = (row) => {
    if (row.complete === null) return "no";
    return row.held ? `step ${row.complete}` : `step ${row.complete}, lost`;
  };

  /** A small curve of the readings. */
  Report.spark = (values, width = 96, height = 22) => {
    const node = Report.svg("svg", {
      class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true",
    });
    const x = (i) => 1 + ((width - 2) * i) / Math.max(values.length - 1, 1);
    const y = (value) => height - 2 - (height - 4) * value;
    let path = "", last = null;
    values.forEach((value, i) => {
      if (value === null) { last = null; return; }
      path += last === null ? `M${x(i).toFixed(1)} ${y(value).toFixed(1)}` : `L${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
      last = value;
    });
    node.append(Report.svg("path", { d: `M1 ${height - 1.5}H${width - 1}`, class: "spark-base" }));
    if (path) node.append(Report.svg("path", { d: path, class: "spark-line" }));
    return node;
  };

  const shapes = {
    play: "M3 1.5v13l11-6.5z",
    pause: "M3 2h3.6v12H3zM9.4 2H13v12H9.4z",
    previous: "M2.5 2h2.2v12H2.5zM14 2v12L5.4 8z",
    next: "M11.3 2h2.2v12h-2.2zM2 2v12l8.6-6z",
    up: "M8 3.2l6 6-1.4 1.5L8 6.1l-4.6 4.6L2 9.2z",
    down: "M8 12.8l6-6-1.4-1.5L8 9.9 3.4 5.3 2 6.8z",
  };
  /** A sign for a button; fonts have them not everywhere. */
  Report.icon = (name) => Report.svg("svg", { width: 15, height: 15, viewBox: "0 0 16 16", "aria-hidden": "true" },
    Report.svg("path", { d: shapes[name] }));

  /** Extremes of lists that may be longer than a call can have arguments. */
  Report.most = (values, start) => values.reduce((a, b) => (b > a ? b : a), start);
  Report.least = (values, start) => values.reduce((a, b) => (b < a ? b : a), start);

  Report.link = (row) => `#episode=${encodeURIComponent(row.key)}`;

  /** Marks of what is wrong with an episode, in words and colour. */
  Report.flagMarks = (row) => {
    const marks = [];
    for (const [kind, count, word] of [
      ["stall", row.stalls, "stall"], ["drop", row.drops, "drop"], ["invalid", row.invalid, "invalid"],
    ]) {
      if (!count) continue;
      const label = kind === "invalid" ? `${count} invalid` : Report.plural(count, word);
      marks.push(Report.el("span", { class: `mark ${kind}` }, label));
    }
    return marks;
  };
})();
