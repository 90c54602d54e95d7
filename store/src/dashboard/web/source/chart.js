// Time series. The data stand in the figure itself, or at the address that it names: {"times": [seconds…], "series": [{"name", "colour", "values"}…]}.
import uPlot from "uplot";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A custom property can be `light-dark(…)`: what it comes to is what an element has that uses it. */
function resolved(name) {
  const probe = document.createElement("i");
  probe.style.color = colour(name);
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** How times of an axis are written in the reader's language: as fine as its steps, and the day where it changes. */
function labels(step) {
  const style = step < 1 ? { minute: "2-digit", second: "2-digit", fractionalSecondDigits: 1 } : step < 60 ? { hour: "2-digit", minute: "2-digit", second: "2-digit" } : { hour: "2-digit", minute: "2-digit" };
  const clock = new Intl.DateTimeFormat(undefined, style);
  const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  return (splits) => {
    let before = "";
    return splits.map((time) => {
      const day = date.format(time * 1000);
      const isNew = day !== before;
      before = day;
      if (step >= 86_400) return day;
      return isNew ? `${clock.format(time * 1000)}\n${day}` : clock.format(time * 1000);
    });
  };
}

/** Steps of axes: round numbers, and nothing between two counts or two bars. */
const COUNTS = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();
const SECONDS = [1, 2, 5, 10, 15, 30].flatMap((size) => [size, size * 60]).concat([1, 2, 3, 6, 12].map((hours) => hours * 3600), [1, 2, 7, 14, 28, 91, 182, 364].map((days) => days * 86_400)).sort((one, other) => one - other);

const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function draw(figure, { times, series: all }) {
  // A legend names what there is to see.
  const some = all.filter((one) => one.values.some((value) => value > 0));
  const series = some.length > 0 ? some : all;
  const place = figure.querySelector(".chart");
  const axis = { stroke: resolved("muted"), grid: { stroke: resolved("line"), width: 1 }, ticks: { stroke: resolved("line") }, font: "12px system-ui, sans-serif" };
  const bars = uPlot.paths.bars({ size: [0.8, 40], radius: 0.15 });
  // Stacked: what is drawn last stands in front, so each is drawn with what lies below it.
  const step = times.length > 1 ? times[1] - times[0] : 1;
  const sums = [];
  series.forEach((one, index) => sums.push(one.values.map((value, at) => value + (index > 0 ? sums[index - 1][at] : 0))));
  const shown = series.map((one, index) => ({
    label: one.name,
    fill: resolved(one.colour),
    stroke: resolved(one.colour),
    width: 0,
    paths: bars,
    points: { show: false },
  }));
  const options = {
    width: place.clientWidth,
    height: 190,
    series: [{}, ...shown.reverse()],
    axes: [
      { ...axis, incrs: SECONDS.filter((size) => size >= step), values: (_, splits, __, ___, step) => labels(step)(splits) },
      { ...axis, size: 46, incrs: COUNTS },
    ],
    scales: { x: { range: (_, min, max) => [min - step / 2, max + step / 2] }, y: { range: (_, __, max) => [0, Math.max(4, max * 1.1)] } },
    cursor: { drag: { x: false, y: false }, points: { show: false } },
    legend: { live: false },
    hooks: {
      setCursor: [
        ({ cursor: { idx } }) => {
          const said = idx == null ? "" : `${exact.format(times[idx] * 1000)}: ${series.map((one) => `${one.values[idx]} ${one.name.toLowerCase()}`).join(", ")}`;
          figure.querySelector(".reading").textContent = said;
        },
      ],
    },
  };
  place.replaceChildren();
  const chart = new uPlot(options, [times, ...sums.reverse()], place);
  // Drawn for people who see it; the table beside it says the same to everybody.
  place.querySelector("canvas")?.setAttribute("aria-hidden", "true");
  return chart;
}

/** How often a growing series is read, in milliseconds. */
const PAUSE = 3000;

async function start(figure) {
  const from = figure.dataset.chartFrom;
  const read = async () => (await fetch(from, { credentials: "same-origin" })).json();
  let data = from ? await read() : JSON.parse(figure.dataset.chart);
  let chart;
  const again = () => {
    chart?.destroy();
    // Nothing to draw yet is said in words.
    chart = data.times.length === 0 ? undefined : draw(figure, data);
    figure.querySelector(".reading").textContent = chart ? "" : "Nothing yet.";
  };
  again();
  new ResizeObserver(() => chart?.setSize({ width: figure.querySelector(".chart").clientWidth, height: 190 })).observe(figure);
  addEventListener("portcullis:theme", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  // What a running job does is drawn while it does it; when it has ended, it is read once more by then.
  while (data.grows) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    if (!figure.isConnected) return;
    const drawn = JSON.stringify([data.times, data.series]);
    try {
      data = await read();
    } catch {
      // The server may be away for a moment.
      continue;
    }
    if (JSON.stringify([data.times, data.series]) !== drawn) again();
  }
}

document.querySelectorAll("figure[data-chart], figure[data-chart-from]").forEach(start);
