// What can be written at a place of a policy, by the JSON Schema that the store publishes.

const cache = new Map();

function load(address) {
  if (!cache.has(address)) cache.set(address, fetch(address, { credentials: "same-origin" }).then((answer) => answer.json()).catch(() => ({})));
  return cache.get(address);
}

/** Follows references, and takes the first of several forms. */
function resolve(root, schema) {
  let found = schema;
  for (let step = 0; found && step < 10; step += 1) {
    if (found.$ref) found = found.$ref.replace("#/", "").split("/").reduce((at, key) => at?.[key], root);
    else if (found.anyOf) found = found.anyOf[0];
    else break;
  }
  return found ?? {};
}

function values(root, schema) {
  const found = resolve(root, schema);
  if (found.enum) return found.enum.map((label) => ({ label: String(label), type: "enum" }));
  if (found.oneOf) return found.oneOf.filter((one) => one.const !== undefined).map((one) => ({ label: String(one.const), info: one.description, type: "enum" }));
  if (found.type === "boolean") return ["true", "false"].map((label) => ({ label, type: "keyword" }));
  return [];
}

/** The keys above a line, by indentation: `["lockdown-mode", "detections"]`. */
function pathOf(state, line, indentation) {
  const path = [];
  let limit = indentation;
  for (let number = line.number - 1; number >= 1 && limit > 0; number -= 1) {
    const text = state.doc.line(number).text;
    const key = /^(\s*)(?:- )?([\w-]+):/.exec(text);
    if (key && key[1].length < limit) {
      path.unshift(key[2]);
      limit = key[1].length;
    }
  }
  return path;
}

/**
 * The key of a line and what is being typed of its value, also of one in a list: by steps, because one expression for lists
 * of any length takes time without end on some of them.
 */
function valueAt(before) {
  const key = /^(\s*)([\w-]+):\s/.exec(before);
  if (!key) return null;
  const last = before.slice(Math.max(before.lastIndexOf(",") + 1, key[0].length)).trimStart();
  const word = /^\[?([\w-]*)$/.exec(last);
  return word && { indentation: key[1].length, key: key[2], word: word[1] };
}

/** A source of completions for CodeMirror. */
export function completions(address) {
  return async (context) => {
    const root = await load(address);
    const line = context.state.doc.lineAt(context.pos);
    const before = line.text.slice(0, context.pos - line.from);
    const item = /^(\s*)- ([\w.-]*)$/.exec(before);
    const value = valueAt(before);
    const key = /^(\s*)([\w-]*)$/.exec(before);
    const at = (path) => path.reduce((schema, name) => resolve(root, schema).properties?.[name], root);
    if (value) {
      let schema = resolve(root, at([...pathOf(context.state, line, value.indentation), value.key]));
      if (schema.type === "array") schema = resolve(root, schema.items);
      return { from: context.pos - value.word.length, options: values(root, schema), validFor: /^[\w-]*$/ };
    }
    if (item) {
      const schema = resolve(root, at(pathOf(context.state, line, item[1].length + 1)));
      return { from: context.pos - item[2].length, options: values(root, schema.items ?? {}), validFor: /^[\w-]*$/ };
    }
    if (!key || (key[2] === "" && !context.explicit)) return null;
    const properties = resolve(root, at(pathOf(context.state, line, key[1].length))).properties ?? {};
    const options = Object.entries(properties)
      .filter(([name]) => name !== "attach")
      .map(([name, schema]) => ({ label: name, apply: `${name}: `, info: schema.description, type: "property" }));
    return { from: context.pos - key[2].length, options, validFor: /^[\w-]*$/ };
  };
}
