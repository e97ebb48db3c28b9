// Enhancements of the pages, which also work without scripts: search while typing, more cards while scrolling, playing
// under the pointer, a viewer, keys, copying.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
if ($(".attention") && matchMedia("(max-width: 800px)").matches) $(".attention").open = false;
const cards = () => [...document.querySelectorAll("#cards .card")];
const topOf = (card) => card.getBoundingClientRect().top;
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

async function fetchPage(address, options) {
  const response = await fetch(address, options);
  if (response.status === 401) location.reload(); // the login has ended
  if (!response.ok) throw new Error(response.statusText);
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

// Search and filters: replaces the results and updates the URL.
let asked = null;
let typing = 0;

function chosen() {
  const query = new URLSearchParams();
  for (const field of document.querySelectorAll("#search [name], #filters [name]")) {
    if (field.value.trim()) query.set(field.name, field.value.trim());
  }
  return query;
}

async function search() {
  asked?.abort();
  asked = new AbortController();
  const query = chosen();
  const address = $("#search").action + (query.size ? `?${query}` : "");
  try {
    const page = await fetchPage(address, { signal: asked.signal });
    $("#results").replaceWith($("#results", page));
    const before = $(".attention"), after = $(".attention", page);
    if (before && !after) before.remove();
    if (!before && after) $("#filters").before(after);
    history.replaceState(null, "", address);
    watchEnd();
  } catch (error) {
    if (error.name !== "AbortError") location.assign(address);
  }
}

$("#search")?.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, 180);
});
$("#search")?.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  search();
});
$("#filters")?.addEventListener("change", search);

// Loads more cards near the end of the page.
const end = new IntersectionObserver((seen) => seen.some((item) => item.isIntersecting) && more(), { rootMargin: "800px" });

function watchEnd() {
  end.disconnect();
  const next = $("#next");
  if (next) end.observe(next);
}

async function more() {
  const next = $("#next"), list = $("#cards");
  if (!next) return;
  end.disconnect();
  try {
    const page = await fetchPage(next.href);
    if (!list.isConnected) return; // another search has replaced the list
    const known = new Set(cards().map((card) => card.getAttribute("href")));
    for (const item of page.querySelectorAll("#cards li")) {
      if (!known.has($("a", item).getAttribute("href"))) list.append(item);
    }
    const following = $("#next", page);
    if (following) next.replaceWith(following);
    else $(".pager").replaceChildren();
    watchEnd();
  } catch {
    // The link to the next page is still there.
  }
}

// A video plays while the pointer rests on its card.
let hovering = 0;

document.addEventListener("pointerover", (event) => {
  const card = event.target.closest?.(".card[data-video]");
  if (event.pointerType !== "mouse" || still || !card || card.contains(event.relatedTarget)) return;
  clearTimeout(hovering);
  hovering = setTimeout(() => {
    const gif = "moving" in card.dataset; // browsers play it only as an image
    const video = Object.assign(document.createElement(gif ? "img" : "video"), { muted: true, loop: true, playsInline: true });
    video.classList.add("playing");
    video.src = card.dataset.video;
    video.hidden = true; // the poster stays until there is something to see
    video.addEventListener(gif ? "load" : "playing", () => (video.hidden = false), { once: true });
    $(".frame :is(img, .blank)", card).after(video);
    if (!gif) video.play().catch(() => video.remove());
  }, 150);
});
document.addEventListener("pointerout", (event) => {
  const card = event.target.closest?.(".card[data-video]");
  if (!card || card.contains(event.relatedTarget)) return;
  clearTimeout(hovering);
  for (const video of card.querySelectorAll(".playing")) {
    video.removeAttribute("src"); // ends the download
    video.load?.();
    video.remove();
  }
});

// The viewer shows the video's own page in a dialog.
const viewer = $("#viewer");
let viewed = null;
let viewing = null;

async function view(link) {
  viewing?.abort();
  viewing = new AbortController();
  viewed = link;
  try {
    const page = await fetchPage(link.href, { signal: viewing.signal });
    const shown = $("#video", page);
    $("#viewed").replaceChildren(document.importNode(shown, true));
    if (!viewer.open) viewer.showModal();
    viewer.scrollTop = 0;
    $("video", viewer)?.play().catch(() => {});
  } catch (error) {
    if (error.name !== "AbortError") location.assign(link.href);
  }
}

function step(by) {
  const all = cards();
  const at = all.indexOf(viewed);
  const next = all[at + by];
  if (at >= 0 && next) view(next);
}

viewer?.addEventListener("close", () => {
  viewing.abort();
  $("#viewed").replaceChildren();
  viewed?.focus();
});
viewer?.addEventListener("click", (event) => {
  if (event.target === viewer || event.target.closest("[data-close]")) viewer.close();
  const button = event.target.closest("[data-step]");
  if (button) step(Number(button.dataset.step));
});
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-open]");
  if (!viewer || !link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  view(link);
});

// Copying.
async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // without https, browsers support only the old way
    const area = Object.assign(document.createElement("textarea"), { value: text });
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const label = button.dataset.label ?? (button.dataset.label = button.textContent);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-copy], [data-copy-from]");
  if (!button) return;
  const source = button.dataset.copyFrom;
  copy(source ? $(`#${source}`, button.closest(".video")).textContent : button.dataset.copy, button);
});

// Keys: / searches, arrows move, Enter opens, Esc closes.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest?.("input, select, textarea, video");
  if (viewer?.open) {
    if (field || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    step(event.key === "ArrowLeft" ? -1 : 1);
    return;
  }
  if (event.key === "/" && !field && $("#search input")) {
    event.preventDefault();
    $("#search input").select();
    return;
  }
  if (event.key === "Escape" && field?.type === "search") {
    if (field.value) {
      field.value = "";
      search();
    } else field.blur();
    return;
  }
  if (field && !(field.type === "search" && event.key === "ArrowDown")) return;
  if (!event.key.startsWith("Arrow")) return;
  const all = cards();
  if (!all.length) return;
  const at = all.indexOf(document.activeElement);
  const columns = all.findIndex((card) => topOf(card) > topOf(all[0]));
  const row = columns > 0 ? columns : all.length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row }[event.key];
  const next = at < 0 ? all[0] : all[at + by];
  if (!next || (at < 0 && event.key === "ArrowUp")) return;
  event.preventDefault();
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
});

watchEnd();
