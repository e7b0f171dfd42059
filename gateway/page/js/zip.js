// A ZIP of files that are compressed already, stored as they are: 40 lines, where a library would be the page's largest part.

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  let crc = value;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1;
  return crc;
});

function checksum(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** A Blob with the archive of `{name, blob}` entries; names that repeat are numbered. */
export async function zipped(entries) {
  const [parts, directory, used] = [[], [], new Set()];
  let offset = 0;
  for (const { name, blob } of entries) {
    let unique = name;
    for (let copy = 2; used.has(unique); copy += 1) unique = name.replace(/(\.[^.]*)?$/, `-${copy}$1`);
    used.add(unique);
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const title = new TextEncoder().encode(unique);
    const facts = [20, 0x0800, 0, 0, 0x21, checksum(bytes), bytes.length, bytes.length, title.length, 0];
    const head = record("IHHHHHIIIHH", [0x04034b50, ...facts]);
    parts.push(head, title, bytes);
    directory.push(record("IHHHHHHIIIHHHHHII", [0x02014b50, 20, ...facts, 0, 0, 0, 0, offset]), title);
    offset += head.length + title.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record("IHHHHIIH", [0x06054b50, 0, 0, entries.length, entries.length, size, offset, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/** Little-endian numbers of 2 (H) and 4 (I) bytes. */
function record(form, values) {
  const bytes = new DataView(new ArrayBuffer([...form].reduce((sum, kind) => sum + (kind === "I" ? 4 : 2), 0)));
  let at = 0;
  [...form].forEach((kind, index) => {
    if (kind === "I") bytes.setUint32(at, values[index], true);
    else bytes.setUint16(at, values[index], true);
    at += kind === "I" ? 4 : 2;
  });
  return new Uint8Array(bytes.buffer);
}
