// Draws every element with data-chart (splatpipe/report/charts.py) with uPlot, when it is seen or printed.
"use strict";
(() => {
  const PALETTE = ["#1f6feb", "#d1660a", "#1a7f4b", "#8250df", "#bf3989", "#57606a", "#0a7ea4", "#9a6700"];
  const MARKS = { note: "#57606a", warning: "#b25e00", stop: "#c62828" };
  const HEIGHT = 190;

  const compact = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1e9) return +(value / 1e9).toPrecision(3) + " bn";
    if (size >= 1e6) return +(value / 1e6).toPrecision(3) + " M";
    if (size >= 1e4) return +(value / 1e3).toPrecision(3) + " k";
    if (size !== 0 && size < 1e-3) return value.toExponential(1);
    return String(+value.toPrecision(4));
  };

  const markLines = (marks) => ({
    hooks: {
      draw: (plot) => {
        const { ctx, bbox } = plot;
        ctx.save();
        ctx.lineWidth = 1.5 * devicePixelRatio;
        for (const mark of marks) {
          const x = plot.valToPos(mark.x, "x", true);
          ctx.strokeStyle = MARKS[mark.severity] || MARKS.note;
          ctx.fillStyle = ctx.strokeStyle;
          ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
          ctx.beginPath();
          ctx.arc(x, bbox.top + 4 * devicePixelRatio, 4 * devicePixelRatio, 0, 7);
          ctx.fill();
        }
        ctx.restore();
      },
    },
  });

  // Says what the curves are worth where the pointer is.
  const readout = (chart, step, shown) => {
    const output = document.createElement("output");
    return {
      hooks: {
        init: (plot) => plot.over.append(output),
        setCursor: (plot) => {
          const at = plot.cursor.idx;
          const values = at === null || at === undefined ? [] : chart.lines.filter((line) => line.values[at] !== null);
          const named = (line) => (chart.lines.length > 1 ? line.label + " " : "") + shown(line.values[at]);
          output.textContent = values.length ? `${step(chart.x[at])}: ${values.map(named).join(", ")}` : "";
        },
      },
    };
  };

  function draw(element) {
    const chart = JSON.parse(element.dataset.chart);
    const shown = chart.share ? (v) => (v === null || v === undefined ? "–" : +(100 * v).toPrecision(3) + " %") : compact;
    const axis = { stroke: "#57606a", grid: { stroke: "#e6e9ed", width: 1 }, ticks: { stroke: "#e6e9ed" }, font: "11px system-ui, sans-serif" };
    const series = chart.lines.map((line, i) => ({
      label: line.label,
      stroke: line.color || PALETTE[i % PALETTE.length],
      width: 1.6,
      spanGaps: true,
      points: { show: chart.x.length < 4 },
      value: (_, v) => shown(v),
    }));
    const options = {
      width: Math.max(220, element.clientWidth),
      height: HEIGHT,
      padding: [12, 22, 0, 0],
      legend: { show: series.length > 1, live: false },
      scales: { x: { time: false }, y: chart.log ? { distr: 3 } : chart.share ? { range: (_, low, high) => [0, high <= 0.1 ? 0.1 : high <= 0.5 ? 0.5 : 1] } : {} },
      series: [{ label: chart.x_label, value: (_, v) => compact(v) }, ...series],
      axes: [
        { ...axis, size: 40, label: chart.x_label, labelSize: 16, labelFont: "11px system-ui, sans-serif", values: (_, all) => all.map((v) => (v === null ? "" : compact(v))) },
        { ...axis, size: 56, values: (_, all) => all.map((v) => (v === null ? "" : shown(v))) },
      ],
      cursor: { drag: { x: true, y: false } },
      plugins: [markLines(chart.marks), readout(chart, compact, shown)],
    };
    element.replaceChildren();
    element.plot = new uPlot(options, [chart.x, ...chart.lines.map((line) => line.values)], element);
  }

  const all = () => [...document.querySelectorAll("[data-chart]")];
  const ready = (element) => !element.plot && element.clientWidth > 0;
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting && ready(entry.target)) draw(entry.target);
  }, { rootMargin: "300px" });
  all().forEach((element) => seen.observe(element));
  addEventListener("resize", () => all().forEach((element) => {
    if (element.plot) element.plot.setSize({ width: Math.max(220, element.clientWidth), height: HEIGHT });
  }));
  addEventListener("beforeprint", () => all().filter(ready).forEach(draw));
  window.splatpipe = { drawCharts: () => all().filter(ready).forEach(draw) };
})();
