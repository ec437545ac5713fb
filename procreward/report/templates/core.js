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
      class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true",
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
