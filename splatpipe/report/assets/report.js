// The report's own behaviour: choosing a patch, the sliders, renewing the page while the run goes on.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const known = [...document.querySelectorAll("[data-section]")].map((section) => section.dataset.section);

  function choose(id, scroll) {
    if (!known.includes(id)) return;
    for (const element of document.querySelectorAll("[data-patch], [data-of], [data-section]")) {
      const { patch, of, section } = element.dataset;
      element.classList.toggle("chosen", [patch, of, section].includes(id));
    }
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
