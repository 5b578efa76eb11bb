// Intervals of events: a row for each metric, the earliest onset first.

const EVENT_KINDS = { change: { height: 0.3, opacity: 0.45 }, onset: { height: 0.8, opacity: 1 }, end: { height: 0.8, opacity: 0.5 } };

/** A figure of intervals: {root, draw(width), move()}. */
function intervalPlot(plot) {
  const card = cardOf(plot, [copyButton(`events of ${plot.title}`, () =>
    [["metric", "event", "from step", "to step"], ...plot.bars.map((bar) => [bar.row, bar.kind, bar.start, bar.stop])])]);
  function draw(width) {
    const names = Math.min(220, 20 + 6.4 * d3.max(plot.rows, (row) => shortened(row, 32).length));
    const bars = Object.entries(EVENT_KINDS).flatMap(([kind, style]) => {
      const inset = (1 - style.height) * 9;
      return [Plot.barX(plot.bars.filter((bar) => bar.kind === kind), {
        x1: "start", x2: "stop", y: "row", fill: paint("#0072B2"), fillOpacity: style.opacity, insetTop: inset, insetBottom: inset, title: "label",
      })];
    });
    const steps = [{ xs: plot.bars.flatMap((bar) => [bar.start, bar.stop]) }];
    card.show(Plot.plot({
      width, height: 22 * plot.rows.length + 44, marginLeft: names, marginRight: 14, marginBottom: 34, marginTop: 6,
      style: { background: "none", fontSize: "11px" },
      x: { ...xScale(plot, plot.x.log, steps), label: null },
      y: { type: "band", domain: plot.rows, label: null },
      marks: [
        Plot.axisY({ tickFormat: (row) => shortened(row, 32), tickSize: 0, label: null, fill: "var(--soft)" }),
        Plot.axisX({ ...xTicks(plot, plot.x.log, width), tickSize: 4, label: axisLabel(plot.x), labelAnchor: "center", labelArrow: "none", fill: "var(--soft)" }),
        ...bars,
      ],
    }), `Intervals of events, ${plot.title}: ${plot.bars.map((bar) => bar.label).join(" ")}`);
    card.hint("full: onset; pale: end; thin: change");
  }
  return { root: card.root, draw, move() {} };
}

