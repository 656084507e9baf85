// The live demonstration: ONNX Runtime Web draws with the teacher and with the student, from the noise that Python draws for a seed.
const SIDE = 28, DATA = .7;  // pixels, standard deviation of the data

// PyTorch's normal noise of a seed on a CPU: MT19937, 24 bits a number, Box-Muller in blocks of 16.
export function noise(seed, n) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ state[i - 1] >>> 30) + i;
  let at = 624;
  const twist = (i, j) => {
    const y = state[i] & 0x80000000 | state[j] & 0x7fffffff;
    state[i] = state[(i + 397) % 624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
  };
  const uniform = () => {
    if (at === 624) for (let i = at = 0; i < 624; i++) twist(i, (i + 1) % 624);
    let y = state[at++];
    y ^= y >>> 11;
    y ^= y << 7 & 0x9d2c5680;
    y ^= y << 15 & 0xefc60000;
    y ^= y >>> 18;
    return (y & 0xffffff)/2**24;
  };
  const x = Float64Array.from({length: n}, uniform);
  for (let i = 0; i < n; i += 16) {
    for (let j = i; j < i + 8; j++) {
      const radius = Math.sqrt(-2*Math.log(1 - x[j])), angle = 2*Math.PI*x[j + 8];
      x[j] = radius*Math.cos(angle);
      x[j + 8] = radius*Math.sin(angle);
    }
  }
  return x;
}

async function unpacked(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${answer.status} for ${address}`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;  // the server said that it is packed, and the browser unpacked it
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer());
}

// Both networks, ready: the names of the classes, and a function that draws. A browser remembers that an import failed, so each attempt has its own address.
export async function load(assets, runtime, attempt = 1) {
  const [ort, wasm, recipes, ...networks] = await Promise.all([
    import(new URL(`ort.wasm.bundle.min.mjs${attempt > 1 ? `?${attempt}` : ''}`, runtime)), unpacked(new URL('ort-wasm-simd-threaded.wasm.gz', runtime)),
    unpacked(new URL('live.json', assets)).then(bytes => JSON.parse(new TextDecoder().decode(bytes))),
    ...['teacher', 'student'].map(name => unpacked(new URL(`${name}.onnx.gz`, assets)))]);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasm;
  const sessions = {};
  for (const name of ['teacher', 'student']) sessions[name] = await ort.InferenceSession.create(networks.shift());
  const number = value => new ort.Tensor('float32', [value], []);
  const combined = (weights, parts) => Float32Array.from(parts[0], (_, i) => weights.reduce((sum, w, j) => sum + w*parts[j][i], 0));

  // A step to noise level 0 ends in the network's answer; the recipe says how the answers are put together.
  async function draw(name, label, seed, each = () => true) {
    const {calls, sample} = recipes[name], parts = [noise(seed, SIDE*SIDE)];
    let milliseconds = 0;
    for (const {sigma, input} of calls) {
      const x = combined(input, parts);
      if (!await each(x, sigma, milliseconds)) return null;
      const feeds = {x: new ort.Tensor('float32', x, [1, 1, SIDE, SIDE]), sigma: number(sigma), sigma_next: number(0),
                     label: new ort.Tensor('int64', [BigInt(label)], [1])};
      const start = performance.now();
      parts.push((await sessions[name].run(feeds)).x_next.data);
      milliseconds += performance.now() - start;
    }
    return {pixels: combined(sample, parts), milliseconds};
  }
  // The first pictures prepare memory and compile; they are no measure of speed.
  for (const name of ['teacher', 'student']) await draw(name, 0, 0);
  return {draw, classes: recipes.classes};
}

function paint(canvas, x, sigma = 0) {
  const scale = DATA/Math.hypot(sigma, DATA), image = new ImageData(SIDE, SIDE);
  x.forEach((v, i) => image.data.set([...Array(3).fill((v*scale + 1)*127.5), 255], 4*i));
  canvas.getContext('2d').putImageData(image, 0, 0);
}

function start(root) {
  const [button, status] = ['button', '[role=status]'].map(what => root.querySelector(what));
  if (typeof WebAssembly === 'undefined' || typeof DecompressionStream === 'undefined') {
    status.textContent = 'This browser has no WebAssembly; the picture shows what the page draws.';
    return;
  }
  const [slider, shown] = ['input', 'output'].map(what => root.querySelector(`label ${what}`));
  const canvas = name => root.querySelector(`#live-${name}`);
  const said = (name, what) => { canvas(name).parentElement.querySelector(name === 'noise' ? 'span' : 'b').textContent = what; };
  let draw, classes, label = 0, round = 0, attempt = 0, loading = false;

  async function one(name, mine) {
    const done = await draw(name, label, Number(slider.value), async (x, sigma, milliseconds) => {
      paint(canvas(name), x, sigma);
      said(name, `${milliseconds.toFixed(0)} ms`);
      await new Promise(requestAnimationFrame);
      return mine === round;
    });
    if (!done || mine !== round) return null;
    paint(canvas(name), done.pixels);
    said(name, `${done.milliseconds.toFixed(0)} ms`);
    return done.milliseconds;
  }

  async function both() {
    const mine = ++round;
    shown.value = slider.value;
    root.dataset.state = 'drawing';
    status.textContent = `Drawing ${classes[label]}, seed ${slider.value} …`;
    paint(canvas('noise'), noise(Number(slider.value), SIDE*SIDE).map(v => v*DATA));
    said('noise', slider.value);
    const student = await one('student', mine);
    const teacher = student === null ? null : await one('teacher', mine);
    if (teacher === null) return;
    status.textContent = `${classes[label]}, seed ${slider.value}: the student took ${student.toFixed(0)} ms, the teacher ${teacher.toFixed(0)} ms.`;
    root.dataset.state = 'done';
  }

  slider.addEventListener('input', both);
  button.disabled = false;
  status.textContent = '';
  button.addEventListener('click', async () => {
    if (loading) return;
    loading = true;
    button.setAttribute('aria-disabled', true);  // it stays in focus
    status.textContent = 'Loading 9 MB …';
    try {
      ({draw, classes} = await load(...['assets', 'runtime'].map(name => new URL(root.dataset[name], location.href)), ++attempt));
    } catch (error) {
      status.textContent = `It could not be loaded (${error.message}). The button tries again; the picture shows what the page draws.`;
      button.setAttribute('aria-disabled', loading = false);
      return;
    }
    const focused = document.activeElement === button;
    classes.forEach((name, i) => {
      const box = root.querySelector('fieldset').appendChild(document.createElement('label'));
      box.innerHTML = `<input type="radio" name="class" value="${i}"${i ? '' : ' checked'}><span>${name}</span>`;
      box.firstChild.addEventListener('change', () => { label = i; both(); });
    });
    root.querySelectorAll('[hidden]').forEach(part => { part.hidden = false; });
    root.querySelector('img').closest('p').hidden = button.parentElement.hidden = true;
    if (focused) root.querySelector('input').focus();
    both();
  });
}

const root = document.getElementById('live');
if (root) start(root);
