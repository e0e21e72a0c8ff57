"use strict";
// What the operator's thumbs, tilt or pose do goes to the server 60 times a second; whether the arm may move is the server's word.

const TRAVEL = 70; // CSS px from where a thumb was put down to full speed
const DEADBAND = 0.15; // fraction of it that does nothing
const SILENCE = 500; // ms without an answer, after which the dead-man switch must be pressed anew
const BACKLOG = 4000; // bytes that wait to leave, with which nothing is said: it would only be old when it arrives
const GONE = 3000; // ms without an answer, after which to connect anew
const OLD_PICTURE = 1000; // ms
const REPLACED = 4000;

const $ = (id) => document.getElementById(id);
const REASONS = {
  "wrong code": "That is not the code.",
  "long code": "That is not the code. After too many wrong ones there is a longer one: look into the terminal.",
  busy: "Another phone is connected. Close its page first.",
  "old session": "The server has started anew, or another phone was connected. Type the code.",
};

let socket = null;
let sequence = 0;
let told = 0; // newest time of the server's clock that we know
let answeredAt = 0;
let engaged = false; // the server's word
let status = {};
let speed = 0.5;
let tilt = null; // newest device orientation, while that mode is on
let pose = null; // of the phone, while AR is on
let session = null; // WebXR's
let pictures = [];

// ---- thumbs ----

class Thumb {
  constructor(element, onPress) {
    this.element = element;
    this.pointer = null;
    this.spent = false; // down, but to be lifted before it counts again
    element.addEventListener("pointerdown", (event) => {
      if (this.pointer !== null) return;
      element.setPointerCapture(event.pointerId);
      this.pointer = event.pointerId;
      this.from = [event.clientX, event.clientY];
      this.by = [0, 0];
      this.spent = false;
      onPress();
      this.draw();
      send();
    });
    element.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.pointer) return;
      this.by = [event.clientX - this.from[0], event.clientY - this.from[1]];
      this.draw();
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      element.addEventListener(end, (event) => {
        if (event.pointerId === this.pointer) this.lift();
      });
    }
  }

  get active() {
    return this.pointer !== null && !this.spent;
  }

  lift() {
    this.pointer = null;
    this.draw();
    send();
  }

  draw() {
    this.element.classList.toggle("touched", this.pointer !== null);
    if (this.pointer === null) return;
    const box = this.element.getBoundingClientRect();
    const [x, y] = [this.from[0] - box.left - this.element.clientLeft, this.from[1] - box.top - this.element.clientTop];
    const shrink = Math.min(1, TRAVEL / (Math.hypot(...this.by) || 1));
    this.element.querySelector(".ring").style.transform = `translate(${x}px, ${y}px)`;
    this.element.querySelector(".knob").style.transform = `translate(${x + this.by[0] * shrink}px, ${y + this.by[1] * shrink}px)`;
  }
}

let firstHeld = 0; // sequence of the first command of this press
let wakeLock = null;
const hold = new Thumb($("hold"), async () => {
  firstHeld = sequence + 1;
  engaged = false;
  if (!wakeLock || wakeLock.released) wakeLock = await navigator.wakeLock?.request("screen").catch(() => null);
});
const pad = new Thumb($("pad"), () => {});

// Whatever takes the operator's eyes or the connection away lets go of the dead-man switch.
function release() {
  engaged = false;
  hold.spent = true;
  send();
}
window.addEventListener("blur", release);
window.addEventListener("pagehide", release);
document.addEventListener("visibilitychange", () => document.hidden && release());

const deflection = (travel) => Math.max(0, Math.min(Math.abs(travel) / TRAVEL, 1) - DEADBAND) / (1 - DEADBAND);

function velocity() {
  if (!hold.active) return [0, 0, 0, 0, 0, 0];
  // up and turn have nothing to do with each other, so each has a dead zone of its own; ahead and left are one direction
  const [turn, lift] = hold.by.map((travel) => -Math.sign(travel) * deflection(travel) * speed);
  if (!pad.active) return [0, 0, lift, 0, 0, turn];
  const length = Math.hypot(...pad.by) || 1;
  const [left, forward] = pad.by.map((travel) => (-travel / length) * deflection(length) * speed);
  return [forward, left, lift, 0, 0, turn];
}

// ---- the phone's own pose: of a body with x ahead, y left, z up, in a frame with z up; what it changes is all that counts ----

const multiply = ([ax, ay, az, aw], [bx, by, bz, bw]) => [
  aw * bx + ax * bw + ay * bz - az * by,
  aw * by - ax * bz + ay * bw + az * bx,
  aw * bz + ax * by - ay * bx + az * bw,
  aw * bw - ax * bx - ay * by - az * bz,
];

function about(axis, degrees) {
  const q = [0, 0, 0, Math.cos((degrees * Math.PI) / 360)];
  q[axis] = Math.sin((degrees * Math.PI) / 360);
  return q;
}

// Device orientation turns about z, then about the new x and y, which point right and up along the upright screen; ahead is the
// top of the screen as it is held.
function orientation({ alpha, beta, gamma }) {
  const device = multiply(multiply(about(2, alpha), about(0, beta)), about(1, gamma));
  return multiply(device, about(2, 90 - (window.screen.orientation?.angle ?? 0)));
}

function currentPose() {
  if (pose) return pose;
  return { position: [0, 0, 0], quaternion: tilt ? orientation(tilt) : [0, 0, 0, 1] };
}

function onOrientation(event) {
  if (event.alpha === null) return; // there is no sensor
  if (!tilt) release();
  tilt = event;
}

async function toggleTilt() {
  const on = $("tilt").getAttribute("aria-pressed") !== "true";
  if (on && typeof DeviceOrientationEvent.requestPermission === "function") {
    const answer = await DeviceOrientationEvent.requestPermission().catch(() => "denied");
    if (answer !== "granted") return;
  }
  release();
  tilt = null;
  window[on ? "addEventListener" : "removeEventListener"]("deviceorientation", onOrientation);
  $("tilt").setAttribute("aria-pressed", on);
}

async function toggleAR() {
  if (session) return session.end();
  session = await navigator.xr.requestSession("immersive-ar", { requiredFeatures: ["dom-overlay"], domOverlay: { root: document.body } });
  session.addEventListener("visibilitychange", release);
  session.addEventListener("end", () => {
    session = pose = null;
    release();
    showAR();
  });
  const gl = document.createElement("canvas").getContext("webgl", { xrCompatible: true });
  session.updateRenderState({ baseLayer: new XRWebGLLayer(session, gl) });
  const space = await session.requestReferenceSpace("local");
  const onFrame = (_time, frame) => {
    session?.requestAnimationFrame(onFrame);
    gl.bindFramebuffer(gl.FRAMEBUFFER, frame.session.renderState.baseLayer.framebuffer);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const view = frame.getViewerPose(space);
    if (!view || view.emulatedPosition) return release(); // lost track of where it is, and may find itself elsewhere
    if (!pose) release(); // held before there was a pose to start from
    const { position: p, orientation: q } = view.transform; // x right, y up, z back
    pose = { position: [-p.z, -p.x, p.y], quaternion: [-q.z, -q.x, q.y, q.w] };
  };
  session.requestAnimationFrame(onFrame);
  showAR();
}

function showAR() {
  $("ar").setAttribute("aria-pressed", session !== null);
  document.body.classList.toggle("ar", session !== null);
}
document.body.addEventListener("beforexrselect", (event) => event.preventDefault());
navigator.xr?.isSessionSupported("immersive-ar").then((supported) => ($("ar").hidden = !supported));

// ---- the server ----

function send() {
  if (socket?.readyState !== WebSocket.OPEN || !told) return;
  sequence += 1;
  socket.send(JSON.stringify({ type: "command", sequence, time: told, held: hold.active, velocity: velocity(), ...currentPose() }));
}

function connect(credentials) {
  socket = new WebSocket(`wss://${location.host}/socket`);
  socket.binaryType = "arraybuffer";
  if (credentials.token) showPairing(false);
  let refusal = null;
  socket.addEventListener("open", (event) => event.target.send(JSON.stringify({ type: "pair", ...credentials })));
  socket.addEventListener("message", (event) => {
    if (typeof event.data !== "string") return drawPicture(event.target, event.data);
    const message = JSON.parse(event.data);
    if (message.type === "refused") refusal = message;
    else if (message.type === "paired") paired(message);
    else if (message.type === "status") status = message;
    else if (message.type === "answer") answered(message);
  });
  socket.addEventListener("close", (event) => {
    told = 0;
    release();
    const token = sessionStorage.getItem("token");
    if (refusal) refused(refusal);
    else if (event.code === REPLACED) askForCode("This phone is connected in another tab.");
    else if (token) setTimeout(connect, 500, { token });
    else askForCode("No connection to the robot's computer.");
  });
}

function paired(message) {
  sessionStorage.setItem("token", message.token);
  told = message.time;
  answeredAt = performance.now();
  $("code").value = "";
  $("code").blur();
  showPairing(false);
  pictures = message.cameras.map((name) => {
    const figure = document.createElement("figure");
    figure.append(document.createElement("canvas"), document.createElement("figcaption"));
    figure.lastChild.textContent = name;
    return { figure, drawnAt: -Infinity };
  });
  $("cameras").replaceChildren(...pictures.map((picture) => picture.figure));
}

function answered(message) {
  told = message.time;
  answeredAt = performance.now();
  if (!hold.active || message.sequence < firstHeld) return;
  if (message.engaged && !engaged) navigator.vibrate?.(30);
  engaged = message.engaged;
  if (!engaged) {
    hold.spent = true;
    navigator.vibrate?.([60, 40, 60]);
  }
}

async function drawPicture(from, data) {
  const camera = new Uint8Array(data)[0];
  const picture = pictures[camera];
  try {
    const bitmap = await createImageBitmap(new Blob([new Uint8Array(data, 1)], { type: "image/jpeg" }));
    const canvas = picture.figure.firstChild;
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    picture.drawnAt = performance.now();
  } catch {
    // not a picture: the last one stays, and is soon marked as old
  }
  if (from.readyState === WebSocket.OPEN) from.send(JSON.stringify({ type: "drawn", camera }));
}

function showPairing(shown) {
  $("pairing").hidden = !shown;
  $("drive").hidden = shown;
}

function refused({ reason, digits }) {
  const longer = reason === "wrong code" && digits > $("code").maxLength;
  $("code").maxLength = digits;
  askForCode(REASONS[longer ? "long code" : reason] ?? "");
}

function askForCode(error) {
  sessionStorage.removeItem("token");
  showPairing(true);
  $("pairing-error").textContent = error;
  $("code").value = "";
}

$("pairing").addEventListener("submit", (event) => {
  event.preventDefault();
  $("pairing-error").textContent = "";
  connect({ code: $("code").value });
});
$("code").addEventListener("input", () => {
  $("code").value = $("code").value.replace(/[^0-9]/g, "");
  if ($("code").value.length === $("code").maxLength) $("pairing").requestSubmit();
});

// ---- buttons ----

// A tap of one thumb while the other holds makes no click: pointers do.
for (const button of document.querySelectorAll("button[data-event]")) {
  let pointer = null;
  button.addEventListener("pointerdown", (event) => {
    button.setPointerCapture(event.pointerId);
    pointer = event.pointerId;
    button.classList.add("pressed");
  });
  button.addEventListener("pointerup", (event) => {
    const over = button.contains(document.elementFromPoint(event.clientX, event.clientY));
    if (event.pointerId === pointer && over && !button.disabled && told) {
      socket.send(JSON.stringify({ type: "event", name: button.dataset.event, time: told }));
    }
  });
  button.addEventListener("lostpointercapture", () => {
    pointer = null;
    button.classList.remove("pressed");
  });
}
for (const button of document.querySelectorAll("button[data-speed]")) {
  button.setAttribute("role", "radio");
  button.addEventListener("click", () => (speed = Number(button.dataset.speed)));
}
$("tilt").addEventListener("click", toggleTilt);
$("ar").addEventListener("click", () => toggleAR().catch(() => session?.end()));
document.addEventListener("contextmenu", (event) => event.preventDefault());

// ---- what is shown ----

const STATES = { lost: "NO CONNECTION", engaged: "ENGAGED", again: "LET GO", off: "DISENGAGED" };

function set(element, property, value) {
  if (element[property] !== value) element[property] = value;
}

function show() {
  let state = "off";
  if (hold.pointer !== null && hold.spent) state = "again";
  if (hold.active && engaged) state = "engaged";
  if (!told || performance.now() - answeredAt > SILENCE) state = "lost";
  if ($("drive").hidden) state = "off";
  set(document.body.dataset, "state", state);
  set($("state"), "textContent", STATES[state]);
  set($("hold-label"), "textContent", state === "again" ? "LET GO,\nTHEN HOLD\nAGAIN" : "HOLD\nTO MOVE");
  set($("arm"), "textContent", [status.arm, status.device].filter(Boolean).join(" · "));
  const recording = status.recorder === "recording";
  const words = [recording ? `● REC ${(status.seconds ?? 0).toFixed(1)} s` : status.recorder, status.episode];
  set($("recorder"), "textContent", words.filter(Boolean).join(" · "));
  $("recorder").classList.toggle("recording", recording);
  set($("problem"), "textContent", status.problem ?? "");
  set($("gripper"), "textContent", status.gripper ? `Gripper: ${status.gripper}` : "Gripper");
  set($("start"), "disabled", status.recorder !== "idle");
  for (const id of ["stop", "fail", "discard"]) set($(id), "disabled", !recording);
  for (const button of document.querySelectorAll("button[data-speed]")) {
    set(button, "ariaChecked", String(Number(button.dataset.speed) === speed));
  }
  for (const { figure, drawnAt } of pictures) figure.classList.toggle("old", performance.now() - drawnAt > OLD_PICTURE);
}

let tickedAt = 0;
function tick() {
  const now = performance.now();
  if (now - tickedAt < 12) return; // screens may have 120 Hz
  tickedAt = now;
  if (hold.active && now - answeredAt > SILENCE) release();
  if (told && now - answeredAt > GONE) socket.close();
  if (socket && socket.bufferedAmount < BACKLOG) send();
  show();
}
// For 100 ms after a touch Chromium draws but holds timers and answers back. While AR is on it may not draw the page.
setInterval(tick, 1000 / 60);
requestAnimationFrame(function onDraw() {
  tick();
  requestAnimationFrame(onDraw);
});

const token = sessionStorage.getItem("token");
if (token) connect({ token });
