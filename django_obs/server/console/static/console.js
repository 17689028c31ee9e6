// Keeps the page fresh and draws the curves. Without it everything can be read, by reloading.
"use strict";
(() => {
  const EVERY = 5000; // milliseconds
  const PATIENCE = 15000;
  const state = document.getElementById("state");
  const pause = document.getElementById("pause");
  const plots = [...document.querySelectorAll("[data-chart]")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let paused = false;
  let lost = null; // since when nobody answers
  let timer = 0;
  let running = false;

  const get = async (url) => {
    const answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    return answer;
  };

  // -- Regions: what the server renders anew takes the place of what is shown.

  const busy = (region) =>
    region.contains(document.activeElement) ||
    (getSelection().type === "Range" && region.contains(getSelection().anchorNode));

  const renew = (text) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    for (const region of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(region.id);
      if (!fresh || busy(region) || region.innerHTML === fresh.innerHTML) continue;
      const open = [...region.querySelectorAll("details[open][id]")].map((each) => each.id);
      region.replaceChildren(...fresh.childNodes);
      for (const id of open) {
        const details = document.getElementById(id);
        if (details) details.open = true;
      }
    }
  };

  // -- Charts

  const three = (value) => String(Number(value.toPrecision(3)));
  const seconds = (value) => {
    if (value === 0) return "0";
    if (value < 1e-3) return `${three(value * 1e6)} µs`;
    return value < 1 ? `${three(value * 1e3)} ms` : `${three(value)} s`;
  };
  const percent = (value) => `${three(value * 100)} %`;
  const KINDS = {
    rate: { curves: [["rate", "--server"]], write: three, least: 0.1 },
    errors: { curves: [["errors", "--bad"]], write: percent, least: 0.01 },
    latency: { curves: [["p50", "--server"], ["p95", "--client"], ["p99", "--bad"]], write: seconds, least: 0.001 },
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clock = (moment) => new Date(moment * 1000).toISOString().slice(11, 19);
  let charts = [];
  let data = null;

  const chart = (place) => {
    const kind = KINDS[place.dataset.chart];
    const axis = { stroke: colour("--muted"), font: "11px system-ui, sans-serif", grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false } };
    const options = {
      width: place.clientWidth,
      height: place.clientHeight,
      padding: [8, 16, 0, 0],
      tzDate: (moment) => uPlot.tzDate(new Date(moment * 1e3), "Etc/UTC"),
      legend: { show: false },
      cursor: { sync: { key: "obs" }, drag: { x: false, y: false }, y: false },
      scales: { y: { range: (_, low, high) => [0, Math.max(kind.least, high || 0) * 1.05] } },
      axes: [
        { ...axis, size: 22, values: (_, moments) => moments.map((each) => clock(each).slice(0, 5)), space: 60, incrs: [60, 120, 300, 600, 900] },
        { ...axis, size: 58, values: (_, values) => values.map(kind.write), space: 28 },
      ],
      series: [
        {},
        ...kind.curves.map(([name, variable]) => ({
          label: name,
          stroke: colour(variable),
          width: 1.5,
          points: { show: (plot) => plot.data[0].length < 3, size: 4 },
        })),
      ],
      hooks: {
        setCursor: [
          (plot) => {
            const at = plot.cursor.idx;
            const shown = plot.cursor.left >= 0 && at != null && plot.data[0][at] != null;
            const words = shown
              ? kind.curves.map(([name], i) => {
                  const value = plot.data[i + 1][at];
                  return `${kind.curves.length > 1 ? `${name} ` : ""}${value == null ? "–" : kind.write(value)}`;
                })
              : [];
            const caption = place.parentElement.querySelector("figcaption h2");
            if (caption) caption.dataset.at = shown ? `${clock(plot.data[0][at])}  ${words.join("  ")}` : "";
          },
        ],
      },
    };
    place.replaceChildren();
    return new uPlot(options, [[], ...kind.curves.map(() => [])], place);
  };

  // A line is not drawn over a silence: nothing is known of it.
  const SILENCE = 60;
  const table = (place) => {
    const names = KINDS[place.dataset.chart].curves.map(([name]) => name);
    const rows = [[], ...names.map(() => [])];
    data.time.forEach((moment, i) => {
      if (i && moment - data.time[i - 1] > SILENCE) {
        rows[0].push(moment - 1);
        names.forEach((_, j) => rows[j + 1].push(null));
      }
      rows[0].push(moment);
      names.forEach((name, j) => rows[j + 1].push(data[name][i]));
    });
    return rows;
  };

  const draw = (anew) => {
    if (!data || !plots.length || typeof uPlot === "undefined") return;
    if (anew || !charts.length) {
      charts.forEach((each) => each.destroy());
      charts = plots.map(chart);
    }
    charts.forEach((each, i) => each.setData(table(plots[i])));
  };

  // -- The clock

  const say = () => {
    const word = lost ? `No answer since ${clock(lost / 1000)}` : paused ? "Paused" : "Live";
    if (state.textContent !== word) state.textContent = word;
    state.className = lost ? "bad" : "";
  };

  const refresh = async () => {
    if (running) return;
    running = true;
    try {
      if (plots.length) {
        data = await (await get("/history.json")).json();
        draw(false);
      }
      if (document.querySelector("[data-live]")) renew(await (await get(location.pathname + location.search)).text());
      lost = null;
    } catch (error) {
      lost = lost || Date.now();
    } finally {
      running = false;
      say();
    }
  };

  const tick = () => {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    refresh().finally(() => {
      clearTimeout(timer);
      timer = setTimeout(tick, EVERY);
    });
  };

  const reveal = () => {
    // What a link leads to shall be open.
    const target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    const details = target && (target.matches("details") ? target : target.querySelector(":scope > details"));
    if (details) details.open = true;
  };

  // After a form that was refused the page has the address of the form, which answers nobody who reads.
  const readable = !location.pathname.startsWith("/console/");
  if (readable) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.textContent = paused ? "Go on" : "Pause";
      say();
      tick();
    });
    document.addEventListener("visibilitychange", tick);
    tick();
  }
  addEventListener("hashchange", reveal);
  reveal();
  dark.addEventListener("change", () => draw(true));
  if (plots.length) {
    new ResizeObserver(() => {
      charts.forEach((each, i) => each.setSize({ width: plots[i].clientWidth, height: plots[i].clientHeight }));
    }).observe(plots[0]);
  }
})();
