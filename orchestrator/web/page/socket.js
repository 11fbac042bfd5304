// The connection to the server; it is made again for as long as the page is open.

const FIRST_MS = 500;
const MOST_MS = 10_000;

/**
 * Follow `/ws`. `onFrame` gets each frame; `onState` gets "open" or "closed" and why.
 */
export function follow(onFrame, onState) {
  let waitMs = FIRST_MS;

  function connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws`);
    socket.addEventListener("message", (event) => {
      waitMs = FIRST_MS;
      onState("open", "");
      onFrame(JSON.parse(event.data));
    });
    socket.addEventListener("close", (event) => {
      onState("closed", event.reason);
      // Spread out: many pages must not come back in one moment.
      setTimeout(connect, waitMs * (0.75 + Math.random() / 2));
      waitMs = Math.min(waitMs * 2, MOST_MS);
    });
  }

  connect();
}
