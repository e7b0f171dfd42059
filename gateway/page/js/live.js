// A camera or a video file, frame by frame to the server and back. At most two frames are on the way; what the camera
// gives meanwhile is late and dropped, so that the picture never lags.

const SIDE_PX = 640;
const ON_THE_WAY = 2;

export function setUp({ element, fail, say }) {
  const [video, screen] = [element("video"), element("live")];
  const source = document.createElement("canvas");
  let [socket, stream, clip, ticker] = [null, null, null, 0];
  let [sent, answered, encoding, dropped, asCame, times, facts] = [0, 0, false, 0, 0, new Map(), null];
  let arrivals = [];

  const background = () => {
    const chosen = document.querySelector("input[name=behind]:checked").value;
    return chosen === "colour" ? element("live-colour").value : chosen;
  };

  async function begin(open) {
    await end();
    try {
      await open();
      await video.play();
      await connect();
      element("stop").disabled = false;
      say("Live. Late frames are dropped, not shown late.");
      ticker = requestAnimationFrame(tick);
    } catch (error) {
      fail(error.name === "NotAllowedError" ? new Error("The browser may not use the camera. Allow it, or choose a video file.")
        : error.name === "NotFoundError" ? new Error("There is no camera here. Choose a video file instead.") : error);
      await end();
    }
  }

  function connect() {
    [sent, answered, encoding, dropped, asCame, times, facts] = [0, 0, false, 0, 0, new Map(), null];
    arrivals = [];
    return new Promise((resolve, reject) => {
      const address = new URL("/api/live", location.href);
      address.protocol = address.protocol.replace("http", "ws");
      const opened = new WebSocket(address);
      opened.binaryType = "blob";
      opened.onopen = () => {
        opened.send(JSON.stringify({ background: background() }));
        socket = opened;
        resolve();
      };
      opened.onerror = () => reject(new Error("The server cannot be reached. Check that it still runs."));
      opened.onclose = () => {
        if (socket === opened) end();
      };
      opened.onmessage = ({ data }) => (typeof data === "string" ? noted(JSON.parse(data)) : shown(data));
    });
  }

  function noted(message) {
    if (message.error) {
      fail(new Error(message.error.message));
      end();
    } else {
      facts = message;
    }
  }

  async function shown(blob) {
    const { id, untouched, dropped: droppedThere } = facts;
    const began = times.get(id);
    answered = Math.max(answered, id); // the server numbers frames as they come, and skips some
    for (const each of times.keys()) if (each <= id) times.delete(each);
    if (untouched) asCame += 1;
    const frame = await createImageBitmap(blob).catch(() => null);
    if (!frame) return;
    [screen.width, screen.height] = [frame.width, frame.height];
    screen.getContext("2d").drawImage(frame, 0, 0);
    frame.close();
    const now = performance.now();
    arrivals = [...arrivals.filter((time) => now - time < 2000), now];
    element("untouched").hidden = !untouched;
    element("fps").textContent = arrivals.length > 1 ? ((arrivals.length - 1) / ((now - arrivals[0]) / 1000)).toFixed(1) : "–";
    element("latency").textContent = began ? `${Math.round(now - began)} ms` : "–";
    element("dropped").textContent = String(dropped + droppedThere);
    element("as-came").textContent = String(asCame);
  }

  let lastFrame = -1;
  function tick() {
    ticker = requestAnimationFrame(tick);
    if (!socket || socket.readyState !== WebSocket.OPEN || !video.videoWidth || video.currentTime === lastFrame) return;
    lastFrame = video.currentTime;
    if (encoding || sent - answered >= ON_THE_WAY) {
      dropped += 1;
      return;
    }
    const share = Math.min(1, SIDE_PX / Math.max(video.videoWidth, video.videoHeight));
    [source.width, source.height] = [Math.round(video.videoWidth * share), Math.round(video.videoHeight * share)];
    source.getContext("2d").drawImage(video, 0, 0, source.width, source.height);
    encoding = true;
    const [began, open] = [performance.now(), socket];
    source.toBlob((blob) => {
      if (open !== socket) return;
      encoding = false;
      if (!blob || open.readyState !== WebSocket.OPEN) return;
      sent += 1;
      times.set(sent, began);
      open.send(blob);
    }, "image/jpeg", 0.8);
  }

  async function end() {
    cancelAnimationFrame(ticker);
    const open = socket;
    socket = null;
    open?.close();
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    video.pause();
    video.srcObject = null;
    video.removeAttribute("src");
    if (clip) URL.revokeObjectURL(clip);
    clip = null;
    element("stop").disabled = true;
    element("untouched").hidden = true;
  }

  element("webcam").addEventListener("click", () => begin(async () => {
    if (!navigator.mediaDevices) throw new Error("The browser gives cameras to pages over https or on localhost alone.");
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: 1280, height: 720 }, audio: false });
    video.srcObject = stream;
  }));
  element("clip").addEventListener("change", ({ target }) => {
    const [file] = target.files;
    if (file) begin(async () => {
      clip = URL.createObjectURL(file);
      video.src = clip;
    });
    target.value = "";
  });
  element("stop").addEventListener("click", end);
  document.querySelectorAll("input[name=behind], #live-colour").forEach((input) => input.addEventListener("change", async () => {
    if (!socket) return;
    const old = socket;
    socket = null;
    old.close();
    await connect().catch(fail);
  }));
  return { end };
}
