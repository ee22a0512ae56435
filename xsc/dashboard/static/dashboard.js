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
  let waiting = null;
  let busy = false;

  function away(says) {
    const place = document.getElementById("away");
    if (place) {
      place.hidden = !says;
      if (place.textContent !== says) place.textContent = says;
    }
  }

  // A page that takes long is fetched less often: at most a tenth of the time.
  async function fetchPage() {
    waiting = null;
    if (busy || document.hidden || document.querySelector("[data-held]")) return later(GAP_MS);
    busy = true;
    const begun = performance.now();
    try {
      const answer = await fetch(location.href, { redirect: "error" });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) return away("The node could not show this page; it is asked again.");
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const main = page.getElementById("main");
      if (main) {
        await htmx.swap({ target: "#main", swap: "outerMorph", text: main.outerHTML });
        away("");
        charts();
      }
    } catch {
      away("The node does not answer. What is shown is what it said last.");
    } finally {
      busy = false;
      last = performance.now() + 9 * (performance.now() - begun);
    }
  }

  function later(ms) {
    waiting ??= setTimeout(fetchPage, ms);
  }

  function changed() {
    later(Math.max(0, last + GAP_MS - performance.now()));
  }

  // One stream a tab. Where too many tabs are open, the oldest are told no more, and ask.
  function follow() {
    const events = new EventSource(`/events?seen=${encodeURIComponent(meta("version"))}`);
    events.onmessage = changed;
    events.onerror = changed;
    events.addEventListener("over", () => {
      events.close();
      setInterval(changed, POLL_MS);
    });
  }

  const FORMATS = {
    bytes: (value) => {
      let unit = 0;
      while (value >= 1024 && unit < 4) { value /= 1024; unit += 1; }
      return `${Math.round(value * 10) / 10} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
    },
    ppm: (value) => `${value / 10000}%`,
    micro: (value) => `${value / 1000000}`,
    count: (value) => `${value}`,
  };

  // A field of the samples is one line; "peers.FIELD" is a line for each peer.
  function lines(samples, field) {
    const [of, inner] = field.split(".");
    if (!inner) return [{ label: "", values: samples.map((row) => row[field]) }];
    const found = new Map();
    samples.forEach((row, place) => row[of].forEach((peer) => {
      if (!found.has(peer.peer)) found.set(peer.peer, { label: peer.name, values: Array(samples.length).fill(null) });
      found.get(peer.peer).values[place] = peer[inner];
    }));
    return [...found.values()];
  }

  async function draw(plot) {
    plot.dataset.drawn = `${Date.now()}`;
    const answer = await fetch(`/history?within_ms=${plot.dataset.withinMs}`);
    if (!answer.ok) return;
    const { samples } = await answer.json();
    const format = FORMATS[plot.dataset.unit];
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const found = lines(samples, plot.dataset.field);
    const axis = { stroke: colour("faint"), grid: { stroke: colour("line") }, ticks: { stroke: colour("line") } };
    plot.replaceChildren();
    new uPlot({
      width: plot.clientWidth || 300,
      height: 200,
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "UTC"),
      legend: { show: found.length > 1, live: false },
      cursor: { show: false },
      axes: [axis, { ...axis, size: 80, values: (_, ticks) => ticks.map(format) }],
      series: [{}, ...found.map((line, place) => ({
        label: line.label || plot.dataset.label, stroke: colour("abcdef"[place % 6]), width: 2,
        points: { show: samples.length < 3 },
      }))],
    }, [samples.map((row) => row.at_ms / 1000), ...found.map((line) => line.values)], plot);
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
    request.open("POST", "/storage/put");
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
    request.onerror = () => ended(one, "broke off: the node does not answer, or this is no file (a directory: xsc store put DIR)", true);
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
    if (event.target.matches("[data-sends]")) event.target.setAttribute("data-held", "");
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
  let resized = null;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => charts(true), 200); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) changed(); });
  document.addEventListener("DOMContentLoaded", () => { charts(); follow(); });
})();
