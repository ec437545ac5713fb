"use strict";
// The table: sorted, searched and filtered; its order is that of the keys j and k.
(() => {
  const { el, get, rows } = Report;
  // A browser takes seconds for thousands of lines.
  const AT_ONCE = 250, MORE = 1000;
  const several = (name) => new Set(rows.map((row) => row[name])).size > 1;
  const any = (name) => rows.some((row) => row[name]);

  const finalCell = (row) => el("span", { class: "meter" },
    el("span", { class: "meter-text" }, Report.percent(row.final)), meter(row.final));
  function meter(value) {
    const fill = el("span", { class: "meter-fill" });
    fill.style.width = `${100 * Math.min(1, Math.max(0, value || 0))}%`;
    return el("span", { class: "meter-track", "aria-hidden": "true" }, fill);
  }

  const columns = [
    { name: "name", title: "Episode", sort: (row) => row.number, cell: (row) =>
      el("a", { href: Report.link(row), class: "open" }, row.name) },
    { name: "policy", title: "Policy", sort: (row) => row.policy, cell: (row) => row.policy,
      when: () => several("policy") },
    { name: "task", title: "Task", sort: (row) => row.task.toLowerCase(), className: "task",
      cell: (row) => el("span", { title: row.task }, row.task) },
    { name: "spark", title: "Progress", cell: (row) => Report.spark(row.spark) },
    { name: "final", title: "Final", sort: (row) => row.final, numeric: true, cell: finalCell,
      note: "Last reading" },
    { name: "complete", title: "Complete", sort: (row) => row.complete, numeric: true,
      cell: (row) => el("span", { class: row.complete === null ? "faint" : row.held ? "good" : "warn" },
        Report.completion(row)), note: "First step at which the task counts as done" },
    { name: "success", title: "Success", sort: (row) => Number(row.success),
      cell: (row) => (row.success ? el("span", { class: "good" }, "yes") : el("span", { class: "faint" }, "no")),
      when: () => any("success"), note: "What the dataset or the environment says" },
    { name: "voc", title: "VOC", sort: (row) => row.voc, numeric: true,
      cell: (row) => Report.signed(row.voc), note: "Value-order correlation: order of the readings against time" },
    { name: "invalid", title: "Invalid", sort: Report.rate, numeric: true,
      cell: (row) => el("span", { class: row.invalid ? "bad" : "faint" }, Report.percent(Report.rate(row), row.invalid ? 1 : 0)),
      note: "Share of queries without a usable answer" },
    { name: "flags", title: "Flags", sort: (row) => row.stalls + row.drops + row.invalid,
      cell: (row) => el("span", { class: "marks" }, Report.flagMarks(row)) },
    { name: "length", title: "Steps", sort: (row) => row.length, numeric: true,
      cell: (row) => row.length.toLocaleString("en") },
    { name: "return", title: "Return", sort: (row) => row.return, numeric: true,
      cell: (row) => Report.signed(row.return, 3), note: "Undiscounted sum of the rewards" },
    { name: "error", title: "Error", sort: (row) => row.error, numeric: true,
      cell: (row) => Report.percent(row.error, 1), when: () => rows.some((row) => row.error !== null),
      note: "Mean distance of the readings to the true progress" },
  ].filter((column) => !column.when || column.when());

  let sorted = { name: "name", ascending: true };
  let visible = [...rows];
  let limit = AT_ONCE;

  function compare(a, b) {
    const column = columns.find(({ name }) => name === sorted.name);
    const [x, y] = [column.sort(a), column.sort(b)];
    // What is unknown stays below, whichever way.
    if (x === null || y === null) return x === y ? a.place - b.place : x === null ? 1 : -1;
    const order = x < y ? -1 : x > y ? 1 : 0;
    return (sorted.ascending ? order : -order) || a.place - b.place;
  }

  const tests = {
    "": () => true,
    flagged: (row) => row.stalls + row.drops + row.invalid > 0,
    stall: (row) => row.stalls > 0,
    drop: (row) => row.drops > 0,
    invalid: (row) => row.invalid > 0,
    complete: (row) => row.complete !== null,
    incomplete: (row) => row.complete === null,
  };

  function matches(row) {
    const words = get("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = `${row.key} ${row.name} ${row.task} ${row.policy}`.toLowerCase();
    return words.every((word) => text.includes(word)) && tests[get("filter").value](row) &&
      Report.overview.holds(row);
  }

  function heads() {
    get("table").tHead.rows[0].replaceChildren(...columns.map((column) => {
      const active = column.name === sorted.name;
      const state = active ? (sorted.ascending ? "ascending" : "descending") : "none";
      const head = el("th", {
        scope: "col", class: `${column.numeric ? "numeric" : ""} ${column.className || ""}`,
        "aria-sort": column.sort ? state : null, title: column.note,
      });
      if (!column.sort) { head.append(column.title); return head; }
      const arrow = active ? (sorted.ascending ? "▲" : "▼") : "";
      head.append(el("button", { type: "button", "data-sort": column.name, onclick: () => sort(column) },
        column.title, el("span", { class: "arrow", "aria-hidden": "true" }, arrow)));
      return head;
    }));
  }

  function sort(column) {
    const same = sorted.name === column.name;
    sorted = { name: column.name, ascending: same ? !sorted.ascending : !column.numeric || column.name === "complete" };
    heads();
    render();
    get("table").querySelector(`[data-sort="${column.name}"]`).focus();
  }

  function line(row) {
    const cells = columns.map((column) =>
      el("td", { class: `${column.numeric ? "numeric" : ""} ${column.className || ""}` }, column.cell(row)));
    return el("tr", { "data-key": row.key, onclick: (event) => {
      if (event.target.closest("a") || String(getSelection())) return;
      location.hash = Report.link(row);
    } }, cells);
  }

  function render() {
    visible = rows.filter(matches).sort(compare);
    const shown = visible.slice(0, limit);
    const body = get("table").tBodies[0];
    body.replaceChildren(...shown.map(line));
    if (!visible.length) {
      const said = rows.length ? "No episode matches." : "There are no episodes.";
      body.append(el("tr", { class: "empty" }, el("td", { colspan: columns.length }, said)));
    }
    get("count").textContent = visible.length === rows.length
      ? Report.plural(rows.length, "episode")
      : `${visible.length.toLocaleString("en")} of ${Report.plural(rows.length, "episode")}`;
    const rest = visible.length - shown.length;
    get("more").hidden = rest <= 0;
    const next = Math.min(rest, MORE).toLocaleString("en");
    get("more").textContent = rest > MORE ? `Show ${next} of ${rest.toLocaleString("en")} more` : `Show ${next} more`;
  }

  /** Show what is now looked for, from its beginning. */
  function anew() {
    limit = AT_ONCE;
    render();
  }

  Report.table = {
    start() {
      heads();
      render();
      get("search").addEventListener("input", anew);
      get("filter").addEventListener("change", anew);
      get("more").addEventListener("click", () => { limit += MORE; render(); });
    },
    render: anew,
    /** The episodes in the order of the table. */
    order: () => visible,
    /** Move the focus to the next or previous episode's link. */
    move(by) {
      const links = [...get("table").querySelectorAll("a.open")];
      const at = links.indexOf(document.activeElement);
      const target = at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, at + by));
      links[target]?.focus();
    },
    focus(row) {
      const link = [...get("table").querySelectorAll("tr")].find((one) => one.dataset.key === row.key)?.querySelector("a");
      link?.focus();
      link?.scrollIntoView({ block: "nearest" });
    },
  };
})();
