for (const pair of document.querySelectorAll(".pair")) {
  const slider = pair.querySelector("input");
  const stack = pair.querySelector(".stack");
  const move = () => stack.style.setProperty("--at", slider.value + "%");
  slider.hidden = false;
  slider.addEventListener("input", move);
  pair.classList.add("live");
  move();
}
