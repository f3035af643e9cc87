"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  const wipe = document.getElementById("wipe");
  if (wipe) {
    const tiles = document.querySelector(".tiles");
    const images = document.getElementById("images");
    const show = () => {
      tiles.style.setProperty("--cut", wipe.value + "%");
      wipe.setAttribute("aria-valuetext", wipe.value + " % float");
    };
    const follow = (event) => {
      const trio = event.target.closest(".trio");
      if (!trio || !images.classList.contains("wiping")) return;
      if (event.type === "pointermove" && !event.buttons) return;
      const box = trio.getBoundingClientRect();
      wipe.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
      show();
    };
    for (const view of document.querySelectorAll("input[name=view]")) {
      view.addEventListener("change", () => images.classList.toggle("wiping", view.value === "wipe" && view.checked));
    }
    wipe.addEventListener("input", show);
    tiles.addEventListener("pointerdown", follow);
    tiles.addEventListener("pointermove", follow);
    tiles.addEventListener("dragstart", (event) => event.preventDefault());
    show();
  }

  const unfold = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const folded = target && target.querySelector(":scope > details.fold");
    if (folded) folded.open = true;
  };
  window.addEventListener("hashchange", unfold);
  unfold();

  const stage = document.getElementById("stage");
  if (stage) {
    const choose = () => {
      for (const panel of document.querySelectorAll(".panel")) {
        panel.classList.toggle("chosen", panel.id === stage.value);
      }
    };
    stage.addEventListener("change", choose);
    choose();
  }

  const compare = (a, b, sign) => {
    const x = a.dataset.sort, y = b.dataset.sort;
    if (x !== undefined && y !== undefined) return sign * (Number(x) - Number(y));
    if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1; // no number stands last, either way
    return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows];
        rows.sort((a, b) => compare(a.cells[column], b.cells[column], up ? 1 : -1));
        body.append(...rows);
      });
    });
  }
})();
