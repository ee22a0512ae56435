// Keeps a page as it is now: fetches it again when the node says that something changed, draws
// charts from the history, sends a slider when it rests, and files that are dropped.
"use strict";
(() => {
  const meta = (name) => document.querySelector(`meta[name="xsc-${name}"]`)?.content ?? "";
  const GAP_MS = 1000;
  const POLL_MS = 10000;
  const CHART_MS = 60000;
  const REST_MS = 400;
  let last = 0;
  let took = 0;
  let waiting = null;
  let due = Infinity;
  let busy = false;
  let told = meta("changes");

  function away(says) {
    const place = document.getElementById("away");
    place.hidden = !says;
    if (place.textContent !== says) place.textContent = says;
  }

  async function fetchPage() {
    due = Infinity;
    if (busy || document.hidden || document.querySelector("[data-held]")) return later(GAP_MS);
    busy = true;
    const begun = performance.now();
    try {
      const answer = await fetch(location.href, { redirect: "error" });
      // No page is loaded here: whatever listens now may not be the node.
      if (answer.status === 401) return away("This browser is not logged in any more: xsc dashboard prints a new link.");
      if (!answer.ok) return away("The node could not show this page; it is asked again.");
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      await htmx.swap({ target: "#main", swap: "outerMorph", text: page.getElementById("main").outerHTML });
      away("");
      charts();
    } catch {
      away("The node does not answer. What is shown is what it said last. Once it was started again, xsc dashboard prints a new link.");
    } finally {
      busy = false;
      last = performance.now();
      took = last - begun;
    }
  }

  function later(ms) {
    if (performance.now() + ms >= due) return;
    clearTimeout(waiting);
    due = performance.now() + ms;
    waiting = setTimeout(fetchPage, ms);
  }

  // A page that takes long is fetched less often: a tenth of the time at most, and a hundredth
  // where it is not known that something changed.
  function changed(event) {
    const known = event?.data !== undefined && event.data !== told;
    told = event?.data ?? told;
    later(Math.max(0, last + Math.max(GAP_MS, (known ? 9 : 99) * took) - performance.now()));
  }

  // One stream a tab. Where too many tabs are open, the oldest are told no more, and ask.
  function follow() {
    const events = new EventSource(`${meta("base")}/events?seen=${encodeURIComponent(meta("changes"))}`);
    events.onmessage = changed;
    events.onerror = () => later(GAP_MS);
    events.addEventListener("over", () => {
      events.close();
      later(GAP_MS);
      setInterval(changed, POLL_MS);
    });
  }

  const FORMATS = {
    ppm: (value) => `${Math.floor(value / 1000) / 10}%`,
    micro: (value) => `${(value / 1000000).toFixed(6).replace(/\.?0+$/, "")}`,
    count: (value) => `${value}`,
  };

  const DAY_MS = 86400000;
  const SPANS = { hour: DAY_MS / 24, day: DAY_MS, week: 7 * DAY_MS, month: 30 * DAY_MS };
  const LINES_MAX = 12;
  const NAME_MAX = 40;
  let chosen = null;
  const histories = new Map();

  // A field of the samples is one line; "peers.FIELD" is a line for each peer.
  function lines(samples, field, label) {
    const [of, inner] = field.split(".");
    if (!inner) return [{ label, values: samples.map((row) => row[field]) }];
    const found = new Map();
    samples.forEach((row, place) => row[of].forEach((peer) => {
      if (!found.has(peer.peer)) found.set(peer.peer, { label: peer.name.slice(0, NAME_MAX), values: Array(samples.length).fill(null) });
      found.get(peer.peer).values[place] = peer[inner];
    }));
    return [...found.values()].sort((one, other) => one.label.localeCompare(other.label, "en", { numeric: true }));
  }

  // All charts of a page are drawn from one answer, also when they are drawn anew.
  async function history(within) {
    const known = histories.get(within);
    if (known && Date.now() - known.at < CHART_MS - GAP_MS) return known.samples;
    const samples = fetch(`${meta("base")}/history?within_ms=${within}`).then(async (answer) => {
      if (!answer.ok) throw new Error(answer.statusText);
      return (await answer.json()).samples;
    });
    histories.set(within, { at: Date.now(), samples });
    samples.catch(() => histories.delete(within));
    return samples;
  }

  function make(name, text, attributes = {}, ...inside) {
    const made = name === "svg" || name === "line" ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.append(text, ...inside);
    return made;
  }

  function spans(label, within) {
    const buttons = Object.entries(SPANS).map(([name, ms]) => {
      const button = make("button", name, { type: "button", class: "quiet", "aria-pressed": ms === within });
      button.addEventListener("click", () => { chosen = ms; charts(true); });
      return button;
    });
    return make("div", "", { class: "spans", role: "group", "aria-label": `Time shown: ${label}` }, ...buttons);
  }

  const dash = (place) => (place < 6 ? [] : [5, 4]);

  // What the colours mean, and the picture for who does not see it.
  function key(found, colours, format, label) {
    const rows = found.map((line, place) => {
      const seen = line.values.filter((value) => value !== null);
      const mark = make("svg", "", { viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": true }, make("line", "", {
        x1: 0, x2: 24, y1: 4, y2: 4, stroke: colours[place], "stroke-width": 3, "stroke-dasharray": dash(place).join(" "),
      }));
      return make("tr", "", {}, make("td", mark), make("th", line.label, { scope: "row" }),
        make("td", seen.length ? format(seen.at(-1)) : "–", { class: "num" }));
    });
    const head = make("tr", "", {}, make("td", ""), make("th", "Line", { scope: "col" }), make("th", "Last", { scope: "col", class: "num" }));
    return make("table", make("caption", `${label}: last values`, { class: "hidden" }), { class: "legend" }, make("thead", head), make("tbody", "", {}, ...rows));
  }

  // Least and most of the picture: from 0 on, and with room above what is there.
  function bounds(found, unit) {
    const all = found.flatMap((line) => line.values).filter((value) => value !== null);
    const most = Math.max(0, ...all);
    return [Math.min(0, ...all) * 1.1, unit === "ppm" ? 1000000 : most * 1.1 || (unit === "micro" ? 1000 : 1)];
  }

  async function draw(plot) {
    const { label, unit, field } = plot.dataset;
    const within = chosen ?? Number(plot.dataset.withinMs);
    plot.dataset.drawn = `${Date.now()}`;
    let samples;
    try {
      samples = await history(within);
    } catch {
      plot.dataset.drawn = "0";
      return;
    }
    if (within !== (chosen ?? Number(plot.dataset.withinMs))) return;
    const pressed = plot.querySelector("button:focus")?.textContent;
    const picture = make("div", "", { role: "img", "aria-label": `${label}, the last ${Object.keys(SPANS).find((name) => SPANS[name] === within) ?? "while"}` });
    plot.replaceChildren(spans(label, within), picture);
    plot.querySelectorAll("button").forEach((button) => { if (button.textContent === pressed) button.focus(); });
    if (!samples.length) plot.append(make("p", "No samples yet: one is taken every minute.", { class: "empty" }));
    const every = lines(samples, field, label);
    const found = every.slice(0, LINES_MAX);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const colours = found.map((_, place) => colour("abcdef"[place % 6]));
    const format = FORMATS[unit];
    const y = bounds(found, unit);
    const now = Date.now() / 1000;
    const axis = { stroke: colour("faint"), font: "12px system-ui", grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
    const long = within > 2 * DAY_MS;
    new uPlot({
      width: plot.clientWidth || 300,
      height: 200,
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "UTC"),
      legend: { show: false },
      cursor: { show: false },
      padding: [8, 16, 0, 0],
      scales: { x: { range: () => [now - within / 1000, now] }, y: { range: () => y } },
      axes: [{
        ...axis,
        space: 64,
        incrs: long ? [1, 2, 4, 7, 14].map((days) => days * 86400) : [5, 10, 15, 30, 60, 120, 180, 240, 360, 720].map((minutes) => minutes * 60),
        values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toISOString().slice(...(long ? [5, 10] : [11, 16]))),
      }, {
        ...axis,
        incrs: Array.from({ length: 36 }, (_, place) => [1, 2, 5][place % 3] * 10 ** Math.floor(place / 3)),
        values: (_, ticks) => ticks.map(format),
        size: (_, texts) => 24 + 7 * Math.max(2, ...(texts ?? []).map((text) => text.length)),
      }],
      series: [{}, ...found.map((line, place) => ({
        label: line.label, stroke: colours[place], width: 2, dash: dash(place), points: { show: samples.length < 3 },
      }))],
    }, [samples.map((row) => row.at_ms / 1000), ...found.map((line) => line.values)], picture);
    if (found.length && samples.length) plot.append(key(found, colours, format, label));
    const others = every.slice(LINES_MAX).map((line) => line.label);
    if (others.length) plot.append(make("p", `Not drawn: ${others.join(", ")}`, { class: "hint" }));
  }

  function charts(anew) {
    document.querySelectorAll(".plot").forEach((plot) => {
      if (anew || Date.now() - Number(plot.dataset.drawn ?? 0) > CHART_MS) draw(plot);
    });
  }

  // Files are put one after the other. Each has a line that says how far it is, and stays.
  const puts = [];
  let putting = false;

  function queue(files) {
    for (const file of files) {
      const line = document.createElement("li");
      line.innerHTML = '<strong></strong><progress max="100" value="0"></progress><span role="status">waits</span><button type="button" class="quiet">Cancel</button>';
      const [name, bar, says, cancel] = line.children;
      name.textContent = file.name.slice(0, 200);
      bar.ariaLabel = `How much of ${name.textContent} is sent`;
      document.getElementById("putting").append(line);
      const one = { file, bar, says, cancel, over: false };
      cancel.onclick = () => { ended(one, "cancelled", true); one.request?.abort(); };
      puts.push(one);
    }
    if (!putting) putNext();
  }

  function ended(one, says, wrong) {
    one.over = true;
    one.says.textContent = says;
    one.says.className = wrong ? "bad" : "good";
    one.cancel.remove();
    one.bar.remove();
  }

  function putNext() {
    const one = puts.find((each) => !each.over);
    putting = Boolean(one);
    if (!one) return;
    const request = one.request = new XMLHttpRequest();
    request.open("POST", `${meta("base")}/storage/put`);
    request.setRequestHeader("XSC-CSRF", meta("csrf"));
    request.setRequestHeader("XSC-Name", encodeURIComponent(one.file.name));
    request.responseType = "json";
    request.upload.onprogress = (event) => {
      one.bar.value = event.total ? 100 * event.loaded / event.total : 100;
      one.says.textContent = event.loaded < event.total ? "is sent" : "is stored at its hosts";
    };
    request.onload = () => {
      const { says, hint } = request.response ?? { says: "the page is of an earlier session", hint: "load it again" };
      ended(one, hint ? `${says}. ${hint}` : says, request.status !== 200);
    };
    request.onerror = () => ended(one, "broke off: the node does not answer, or this is no file (a directory: xsc store put -r DIR)", true);
    request.onloadend = putNext;
    one.says.textContent = "is sent";
    request.send(one.file);
  }

  document.addEventListener("change", (event) => {
    if (event.target.id === "files") { queue(event.target.files); event.target.value = ""; }
  });
  // Beside the field a drop does nothing: by itself the browser would leave the page for the file.
  for (const type of ["dragover", "drop"]) document.addEventListener(type, (event) => {
    event.preventDefault();
    const over = event.target.closest?.("#drop");
    document.getElementById("drop")?.classList.toggle("over", Boolean(over) && type === "dragover");
    if (over && type === "drop") queue(event.dataTransfer.files);
  });
  addEventListener("beforeunload", (event) => { if (putting) event.preventDefault(); });

  // A slider is held while somebody moves it, so that a page that comes does not move it back.
  document.addEventListener("input", (event) => {
    if (!event.target.matches("[data-sends]")) return;
    event.target.setAttribute("data-held", "");
    event.target.nextElementSibling.textContent = FORMATS.ppm(event.target.value);
  });
  document.addEventListener("change", (event) => {
    const slider = event.target;
    if (!slider.matches("[data-sends]")) return;
    // A key that is pressed again and again says "changed" each time.
    clearTimeout(slider.resting);
    slider.resting = setTimeout(() => {
      slider.removeAttribute("data-held");
      slider.form.requestSubmit();
    }, REST_MS);
  });
  // What was refused, or changed elsewhere, is on the page: a slider that was moved goes there.
  document.addEventListener("htmx:after:swap", () => {
    for (const each of document.querySelectorAll("[data-sends]:not([data-held])")) each.value = each.defaultValue;
  });
  let resized = null;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => charts(true), 200); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts(true));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) changed(); });
  document.addEventListener("DOMContentLoaded", () => { charts(); follow(); });
})();
