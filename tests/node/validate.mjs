// Checks the contract's documents with the schemas that others use.
// Usage: node validate.mjs FOLDER; prints what is wrong, a line each.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import specs from "@asyncapi/specs";
import Ajv from "ajv";
import Ajv2020 from "ajv/dist/2020.js";

const [folder] = process.argv.slice(2);
const read = (...path) => JSON.parse(readFileSync(join(folder, ...path), "utf8"));
const options = { strict: false, validateFormats: false, allErrors: true };
const wrong = [];

// It brings the meta-schema of its dialect along.
const alone = { ...options, meta: false, validateSchema: false };
const document = new Ajv(alone).compile(specs.schemas["3.0.0"]);
if (!document(read("asyncapi.json"))) {
  wrong.push(...document.errors.map((e) => `asyncapi.json${e.instancePath}: ${e.message}`));
}

const tiles = new Ajv2020(options).compile(read("tiles.schema.json"));
let examples = 0;
for (const kind of ["valid", "invalid"]) {
  for (const name of readdirSync(join(folder, "examples", kind))) {
    const example = read("examples", kind, name);
    const expected = kind === "valid" || !example.schema;
    if (tiles(example.tiles) !== expected) {
      wrong.push(`${kind}/${name}: the schema ${expected ? "refuses" : "takes"} it`);
    }
    examples += 1;
  }
}

wrong.forEach((line) => console.log(line));
console.log(`${examples} examples`);
process.exit(wrong.length ? 1 : 0);
