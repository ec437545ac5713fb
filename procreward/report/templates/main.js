"use strict";
// What is shown follows the address: nothing for the overview, #episode=3&t=1.2 for an episode.
(() => {
  const { get } = Report;
  let scroll = 0;

  function route() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const row = Report.byKey.get(asked.get("episode"));
    const before = Report.viewer.row;
    if (row) {
      if (!before) scroll = window.scrollY;
      get("overview").hidden = true;
      get("viewer").hidden = false;
      document.body.classList.add("viewing");
      Report.viewer.open(row, Number.parseFloat(asked.get("t")) || 0);
      if (before !== row) window.scrollTo(0, 0);
      return;
    }
    Report.viewer.close();
    get("viewer").hidden = true;
    get("overview").hidden = false;
    document.body.classList.remove("viewing");
    if (before) {
      window.scrollTo(0, scroll);
      Report.table.focus(before);
    }
  }

  function back() {
    history.pushState(null, "", `${location.pathname}${location.search}`);
    route();
  }

  const keys = {
    " ": () => Report.viewer.toggle(),
    ArrowLeft: () => Report.viewer.query(-1),
    ArrowRight: () => Report.viewer.query(1),
    ",": () => Report.viewer.by(-1),
    ".": () => Report.viewer.by(1),
    Home: () => Report.viewer.seek(0),
    End: () => Report.viewer.seek(Infinity),
    j: () => Report.viewer.neighbour(1),
    k: () => Report.viewer.neighbour(-1),
    Escape: back,
  };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    const typing = target.closest("input, select, textarea");
    if (typing) {
      if (event.key === "Escape") typing.blur();
      return;
    }
    // A button in focus is pressed with the space bar.
    if (event.key === " " && target.closest("button, summary, a")) return;
    if (Report.viewer.row) {
      if (event.key in keys) { event.preventDefault(); keys[event.key](); }
      return;
    }
    if (event.key === "j" || event.key === "k") Report.table.move(event.key === "j" ? 1 : -1);
    if (event.key === "/") { event.preventDefault(); get("search").focus(); }
  }

  Report.overview.start();
  Report.table.start();
  Report.viewer.start(back);
  window.addEventListener("hashchange", route);
  window.addEventListener("popstate", route);
  document.addEventListener("keydown", onKey);
  route();
})();
