// Executes a JavaScript program and says what its calls returned, a line each: the twin of run_python.py, in the form of
// stages/common/execution/values.py. It is at the program's mercy: whatever the program does to it can only make it say
// something else, and what it says is compared outside.
//
// Numbers: safe integers come out as whole numbers, others as floats. A promise is awaited.
'use strict';

const fs = require('node:fs');
const vm = require('node:vm');
const { isBuiltin } = require('node:module');
const { isPromise, isSet } = require('node:util').types;

const DEEPEST = 48;
const LARGEST = 1 << 22;
const OURS = '__the_function_that_is_called';

// bound now: the program may put others in their place
const writeSync = fs.writeSync;
const leave = process.reallyExit.bind(process);
const quote = JSON.stringify;
const prototypeOf = Object.getPrototypeOf;
const plainPrototype = Object.prototype;
const keysOf = Object.keys;
const define = Object.defineProperty;
const apply = Reflect.apply;
const isArray = Array.isArray;
const has = Object.hasOwn;
const isSafe = Number.isSafeInteger;
const wellFormed = Function.call.bind(String.prototype.isWellFormed);
const forEachOfSet = Function.call.bind(Set.prototype.forEach);
const hexOf = (bytes) => bytes.toString('hex');

class TooMuch extends Error {}

const results = Number(process.argv[3]);
const job = JSON.parse(fs.readFileSync(Number(process.argv[2]), 'utf8'));
fs.closeSync(Number(process.argv[2]));
process.argv.length = 0;

function say(line) {
  const bytes = Buffer.from(`${line}\n`, 'utf8');
  for (let done = 0; done < bytes.length; ) done += writeSync(results, bytes, done);
}

function encode(value) {
  try {
    return encoded(value, 0, { left: LARGEST });
  } catch (error) {
    if (error instanceof TooMuch) return strange(error.message);
    return strange(`a value that could not be brought out: ${nameOf(error)}`);
  }
}

function encoded(value, depth, budget) {
  spend(budget, 4);
  if (depth > DEEPEST) throw new TooMuch(`a value nested beyond ${DEEPEST} levels`);
  if (value === null) return 'null';
  switch (typeof value) {
    case 'boolean':
      return value ? 'true' : 'false';
    case 'number':
      return number(value);
    case 'bigint':
      return bigint(value, budget);
    case 'string':
      return text(value, budget);
    case 'object':
      return object(value, depth, budget);
    default:
      return strange(typeof value);
  }
}

function object(value, depth, budget) {
  let body = '';
  if (isArray(value)) {
    for (let i = 0; i < value.length; i++) body += (i ? ',' : '') + encoded(value[i], depth + 1, budget);
    return `[${body}]`;
  }
  if (isSet(value)) {
    let first = true;
    forEachOfSet(value, (member) => {
      if (typeof member !== 'string' && typeof member !== 'number') throw new TooMuch('Set of more than texts and numbers');
      body += (first ? '' : ',') + encoded(member, depth + 2, budget);
      first = false;
    });
    return `{"set":[${body}]}`;
  }
  const prototype = prototypeOf(value);
  if (prototype !== plainPrototype && prototype !== null) return strange(className(prototype));
  const keys = keysOf(value);
  for (let i = 0; i < keys.length; i++) {
    body += `${i ? ',' : ''}[${text(keys[i], budget)},${encoded(value[keys[i]], depth + 3, budget)}]`;
  }
  return `{"dict":[${body}]}`;
}

function number(value) {
  if (isSafe(value)) return `${value === 0 ? 0 : value}`;
  const word = value !== value ? 'nan' : value === Infinity ? 'inf' : value === -Infinity ? '-inf' : `${value}`;
  return `{"float":"${word}"}`;
}

function bigint(value, budget) {
  if (value > -9007199254740992n && value < 9007199254740992n) return value.toString();
  const digits = (value < 0n ? -value : value).toString(16);
  spend(budget, digits.length);
  return `{"int":"${value < 0n ? '-' : ''}0x${digits}"}`;
}

function text(value, budget) {
  spend(budget, value.length);
  return wellFormed(value) ? quote(value) : `{"text":"${hexOf(surrogatePass(value))}"}`;
}

// UTF-8 in which half a surrogate pair stands as three bytes, as Python's "surrogatepass" has it
function surrogatePass(value) {
  const parts = [];
  for (let i = 0; i < value.length; i++) {
    const point = value.codePointAt(i);
    if (point > 0xffff) i++;
    if (point < 0xd800 || point > 0xdfff) parts.push(Buffer.from(String.fromCodePoint(point), 'utf8'));
    else parts.push(Buffer.from([0xe0 | (point >> 12), 0x80 | ((point >> 6) & 63), 0x80 | (point & 63)]));
  }
  return Buffer.concat(parts);
}

function spend(budget, characters) {
  budget.left -= characters;
  if (budget.left < 0) throw new TooMuch(`a value larger than ${LARGEST >> 20} MiB`);
}

function strange(name) {
  return `{"strange":${quote(name.replace(/[^ -~]/g, '?').slice(0, 120))}}`;
}

function className(prototype) {
  const made = prototype.constructor;
  return typeof made === 'function' && typeof made.name === 'string' && made.name ? made.name : 'object';
}

function nameOf(error) {
  try {
    const name = typeof error === 'object' && error !== null ? error.name : typeof error;
    return typeof name === 'string' && name ? name.replace(/[^ -~]/g, '?').slice(0, 100) : 'object';
  } catch {
    return 'object';
  }
}

function reason(error) {
  let message = '';
  try {
    message = `${error.message}`.replace(/[^ -~]/g, '?').slice(0, 300);
  } catch {
    // an exception whose text is a program's too
  }
  return message ? `${nameOf(error)}: ${message}` : nameOf(error);
}

function decode(told) {
  if (isArray(told)) return decodeAll(told);
  if (typeof told !== 'object' || told === null) return told;
  if (has(told, 'tuple')) return decodeAll(told.tuple);
  if (has(told, 'set')) return new Set(decodeAll(told.set));
  if (has(told, 'int')) return told.int[0] === '-' ? -BigInt(told.int.slice(1)) : BigInt(told.int);
  if (has(told, 'float')) return Number(told.float.replace('nan', 'NaN').replace('inf', 'Infinity'));
  if (has(told, 'text')) return fromSurrogatePass(Buffer.from(told.text, 'hex'));
  const made = {};
  for (let i = 0; i < told.dict.length; i++) property(made, decode(told.dict[i][0]), decode(told.dict[i][1]));
  return made;
}

function decodeAll(list) {
  const made = [];
  for (let i = 0; i < list.length; i++) property(made, i, decode(list[i]));
  return made;
}

// as `made[key] = value`, whatever stands in the prototypes
function property(made, key, value) {
  define(made, key, { __proto__: null, value, writable: true, enumerable: true, configurable: true });
}

function fromSurrogatePass(bytes) {
  let made = '';
  for (let i = 0; i < bytes.length; ) {
    const first = bytes[i];
    const length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    let point = length === 1 ? first : first & (0xff >> (length + 1));
    for (let j = 1; j < length; j++) point = (point << 6) | (bytes[i + j] & 63);
    made += String.fromCodePoint(point);
    i += length;
  }
  return made;
}

// the program as a script; or, if it is none, the error that says why
function asScript(code) {
  try {
    return new vm.Script(code, { filename: 'answer.js', importModuleDynamically: imported });
  } catch (error) {
    return error;
  }
}

// What only a module may hold (import, export, await at its top) makes a program a module, as node has it. Its function
// is found whether or not it is exported. A program that is no module either is told about as the script that it is not.
async function loadedAsModule(code, whyNoScript) {
  const settings = { identifier: 'answer.mjs', importModuleDynamically: imported };
  let made;
  try {
    made = new vm.SourceTextModule(`${code}\n;export { ${job.entry} as ${OURS} };`, settings);
  } catch {
    try {
      made = new vm.SourceTextModule(code, settings);
    } catch {
      throw whyNoScript;
    }
  }
  await made.link(ownLibrary);
  await made.evaluate();
  const exported = made.namespace;
  return exported[OURS] ?? exported[job.entry] ?? exported.default?.[job.entry] ?? exported.default;
}

async function imported(name) {
  const library = await ownLibrary(name);
  await library.link(ownLibrary);
  await library.evaluate();
  return library;
}

async function ownLibrary(name) {
  if (!isBuiltin(name)) throw new Error(`there is no module ${name}`);
  const library = await import(name);
  const names = keysOf(library);
  return new vm.SyntheticModule(names, function () {
    for (let i = 0; i < names.length; i++) this.setExport(names[i], library[names[i]]);
  });
}

async function main() {
  const module = { exports: {} };
  const globals = { module, exports: module.exports, require };
  for (const name of keysOf(globals)) property(globalThis, name, globals[name]);
  let entry;
  try {
    const code = decode(job.code);
    const script = asScript(code);
    if (script instanceof vm.Script) {
      script.runInThisContext();
      entry = vm.runInThisContext(`typeof ${job.entry} === 'undefined' ? undefined : ${job.entry}`);
      if (typeof entry !== 'function' && module.exports !== null) entry = module.exports[job.entry] ?? module.exports;
    } else {
      entry = await loadedAsModule(code, script);
    }
  } catch (error) {
    say(`{"failed":${quote(reason(error))}}`);
    leave(0);
  }
  if (typeof entry !== 'function') {
    say(`{"failed":"the program defines no function ${job.entry}"}`);
    leave(0);
  }
  for (let i = 0; i < job.calls.length; i++) {
    let line;
    try {
      let value = apply(entry, undefined, decodeAll(job.calls[i]));
      if (isPromise(value)) value = await value;
      line = `{"returned":${encode(value)}}`;
    } catch (error) {
      line = `{"raised":${quote(nameOf(error))}}`;
    }
    say(line);
  }
  leave(0);
}

main();
