// The report's own behaviour: choosing a patch, the sliders, renewing the page while the run goes on.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  if (document.querySelector(".ground svg.many, .schedule.many")) root.classList.add("many");
  const known = [...document.querySelectorAll("[data-section]")].map((section) => section.dataset.section);
  const details = JSON.parse(document.getElementById("details")?.textContent || "{}");
  const map = document.querySelector(".ground svg");

  // The chosen patch's buffer and cameras; of all patches at once they would be tens of thousands of shapes.
  function draw(id) {
    const group = map?.querySelector(".detail");
    if (!group) return;
    const shape = (name, values, title) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
      if (title) made.appendChild(document.createElementNS(made.namespaceURI, "title")).textContent = title;
      return made;
    };
    const { buffered, training, holdout } = details[id] || { training: [], holdout: [] };
    const dots = (list, kind, more) => list.map(([cx, cy, name]) => shape("circle", { class: kind, cx, cy, r: map.dataset.dot }, name + more));
    group.replaceChildren(...(buffered ? [shape("d" in buffered ? "path" : "rect", { class: "buffered", ...buffered })] : []),
      ...dots(training, "camera", ""), ...dots(holdout, "holdout", " (hold-out)"));
  }

  function choose(id, scroll) {
    if (!known.includes(id)) return;
    for (const element of document.querySelectorAll("[data-patch], [data-of], [data-section]")) {
      const { patch, of, section } = element.dataset;
      element.classList.toggle("chosen", [patch, of, section].includes(id));
    }
    draw(id);
    map?.append(...map.querySelectorAll(".label.chosen")); // over the others
    splatpipe.drawCharts();
    if (scroll) document.querySelector(`[data-section="${CSS.escape(id)}"]`).scrollIntoView({ behavior: "smooth", block: "start" });
  }

  function pick(id) {
    history.replaceState(null, "", "#" + encodeURIComponent(id));
    choose(id, true);
  }

  for (const element of document.querySelectorAll("[data-patch]")) {
    element.addEventListener("click", (event) => { event.preventDefault(); pick(element.dataset.patch); });
    element.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(element.dataset.patch); });
  }
  const asked = () => decodeURIComponent(location.hash.slice(1));
  addEventListener("hashchange", () => choose(asked(), true));
  const worst = document.querySelector(".patch-on-map.failed")?.dataset.patch;
  choose(known.includes(asked()) ? asked() : worst || known[0], false);

  // Lists: one outcome only, and in the order of a column. Both survive the page renewing itself.
  const kept = (name, value) => {
    const key = `splatpipe ${location.pathname} ${name}`;
    try { return value === undefined ? sessionStorage.getItem(key) : sessionStorage.setItem(key, value); } catch { return null; }
  };
  const buttons = [...document.querySelectorAll(".filters button")];
  function only(kind) {
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.kind === kind);
    for (const row of document.querySelectorAll("tr[data-kind]")) row.hidden = Boolean(kind) && row.dataset.kind !== kind;
    for (const one of document.querySelectorAll(".patch-on-map")) one.classList.toggle("pale", Boolean(kind) && !one.classList.contains(kind));
    kept("kind", kind);
  }
  for (const button of buttons) button.addEventListener("click", () => only(button.dataset.kind));
  if (buttons.some((button) => button.dataset.kind === kept("kind"))) only(kept("kind"));

  function sort(table, column, up) {
    const cell = (row) => row.cells[column].dataset.order ?? row.cells[column].textContent;
    const value = (row) => (cell(row) !== "" && isFinite(cell(row)) ? Number(cell(row)) : cell(row));
    const compare = (a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === "");
      return (left > right ? 1 : left < right ? -1 : 0) * (up ? 1 : -1);
    };
    table.tBodies[0].append(...[...table.rows].slice(1).sort(compare));
    [...table.rows[0].cells].forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : up ? "ascending" : "descending"));
    kept("sort", `${column} ${up}`);
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.rows[0].cells].forEach((head, i) => {
      head.tabIndex = 0;
      const turn = () => sort(table, i, head.getAttribute("aria-sort") === "ascending" ? false : true);
      head.addEventListener("click", turn);
      head.addEventListener("keydown", (event) => { if (event.key === "Enter") turn(); });
    });
    const [column, up] = (kept("sort") || "").split(" ");
    if (table.rows[0].cells[column]) sort(table, Number(column), up === "true");
  }

  for (const compare of document.querySelectorAll(".compare")) {
    const input = compare.querySelector("input");
    input.addEventListener("input", () => compare.style.setProperty("--at", input.value + "%"));
  }

  // Before printing every patch is shown, so that its charts have a width to be drawn in.
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    splatpipe.drawCharts();
  });
  addEventListener("afterprint", () => root.classList.remove("printing"));

  splatpipe.renew = (seconds) => setInterval(() => { if (!document.hidden) location.reload(); }, 1000 * seconds);
})();
