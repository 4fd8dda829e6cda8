/** Files of safetensors, read: tensors by name, float16 widened to float32. */

export interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

export interface TensorFile {
  readonly tensors: ReadonlyMap<string, Tensor>;
  readonly metadata: Readonly<Record<string, string>>;
}

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

/** Raises RangeError for a file that is damaged or holds other numbers than F16 and F32. */
export function readSafetensors(buffer: ArrayBuffer): TensorFile {
  const view = new DataView(buffer);
  if (buffer.byteLength < 8) throw damaged("it ends in its first 8 bytes");
  const length = Number(view.getBigUint64(0, true));
  if (8 + length > buffer.byteLength) throw damaged("its header is longer than the file");
  let header: Record<string, unknown>;
  try {
    header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length))) as Record<string, unknown>;
  } catch {
    throw damaged("its header is not JSON");
  }
  const tensors = new Map<string, Tensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name !== "__metadata__") tensors.set(name, readTensor(name, entry as Entry, buffer, 8 + length));
  }
  return { tensors, metadata: (header.__metadata__ ?? {}) as Record<string, string> };
}

function readTensor(name: string, entry: Entry, buffer: ArrayBuffer, base: number): Tensor {
  const [begin, end] = entry.data_offsets;
  const count = entry.shape.reduce((product, side) => product * side, 1);
  const width = entry.dtype === "F16" ? 2 : entry.dtype === "F32" ? 4 : 0;
  if (!width) throw damaged(`${name} has numbers of type ${entry.dtype}; F16 and F32 can be read`);
  if (begin < 0 || end - begin !== count * width || base + end > buffer.byteLength) {
    throw damaged(`the data of ${name} do not fit its shape ${entry.shape.join(" x ")}`);
  }
  // A copy, as the data may begin at any byte.
  const bytes = buffer.slice(base + begin, base + end);
  const data = width === 2 ? widenHalf(new Uint16Array(bytes)) : new Float32Array(bytes);
  return { shape: entry.shape, data };
}

/** Bits of float16 -> float32, exactly. */
export function widenHalf(half: Uint16Array): Float32Array {
  const bits = new Uint32Array(half.length);
  for (let i = 0; i < half.length; i += 1) {
    const value = half[i]!;
    const sign = (value & 0x8000) << 16;
    const exponent = (value >> 10) & 0x1f;
    const fraction = value & 0x3ff;
    if (exponent === 0x1f) bits[i] = sign | 0x7f800000 | (fraction << 13);
    else if (exponent) bits[i] = sign | ((exponent + 112) << 23) | (fraction << 13);
    else if (fraction) {
      // Below float16's smallest normal number; in float32 there is room for it.
      const shift = Math.clz32(fraction) - 21;
      bits[i] = sign | ((113 - shift) << 23) | (((fraction << shift) & 0x3ff) << 13);
    } else bits[i] = sign;
  }
  return new Float32Array(bits.buffer);
}

function damaged(why: string): RangeError {
  return new RangeError(`The image's features cannot be read: ${why}.`);
}
