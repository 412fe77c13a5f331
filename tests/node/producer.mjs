// Publishes one tile, written by hand from the contract.
// Usage: node producer.mjs URL EXCHANGE
import amqp from "amqplib";

const [url, exchange] = process.argv.slice(2);
const SIDE = 64;

const about = {
  store: "node/d_output.zarr",
  array: "g1/img",
  axes: "CYX",
  shape: [1, SIDE, SIDE],
  tiles: [{ crop_coords: [4, 4], crop_size: [SIDE - 8, SIDE - 8], stitch_coords: [8, 0] }],
};
const tile = Float32Array.from({ length: SIDE * SIDE }, (_, i) => i + 0.5);

// 8 bytes of little-endian header length, the header, the tensors.
function safetensors(tensors, tiles) {
  const header = { __metadata__: { tiles: JSON.stringify(tiles) } };
  let end = 0;
  const data = tensors.map(({ dtype, shape, values }, i) => {
    const start = end;
    end += values.byteLength;
    header[i] = { dtype, shape, data_offsets: [start, end] };
    return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  });
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, ...data]);
}

const body = safetensors([{ dtype: "F32", shape: [1, SIDE, SIDE], values: tile }], about);
const connection = await amqp.connect(url);
const channel = await connection.createConfirmChannel();
let returned;
channel.on("return", (message) => (returned = message.fields.replyText));
channel.publish(exchange, about.store, body, {
  type: "tiles.v1",
  contentType: "application/x-safetensors",
  persistent: true,
  mandatory: true,
});
await channel.waitForConfirms();
await connection.close();
if (returned) {
  console.error(`no queue takes ${about.store}: ${returned}`);
  process.exit(1);
}
