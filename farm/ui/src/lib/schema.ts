// What kind of input does a parameter's JSON Schema ask for?

import type { Schema } from "./types";

export type Input =
  | { as: "choice"; options: unknown[]; also: string[] }
  | { as: "switch" }
  | { as: "number"; whole: boolean; min?: number; max?: number; step: number }
  | { as: "text"; long: boolean }
  | { as: "upload"; shows: string }
  | { as: "adapter"; type: string }
  | { as: "list"; of: Schema; most?: number }
  | { as: "group"; of: [string, Schema][]; required: string[] };

/** A schema without references and without "or null"; `root` holds the definitions. */
export function plain(schema: Schema, root: Schema): Schema {
  let found = schema;
  for (let deep = 0; deep < 8; deep++) {
    if (found.$ref) {
      const { $ref, ...own } = found;
      found = { ...root.$defs?.[$ref.split("/").at(-1)!], ...own };
      continue;
    }
    const real = found.anyOf?.filter((one) => one.type !== "null");
    if (!real?.length) break;
    const { anyOf: _, ...own } = found;
    found = { ...real[0], ...own };
  }
  return found;
}

/** Whether a field may be left empty by null. */
export const nullable = (schema: Schema): boolean => !!schema.anyOf?.some((one) => one.type === "null");

/** The input for a schema that is `plain`. */
export function inputOf(schema: Schema): Input {
  if (schema["x-upload"]) return { as: "upload", shows: schema["x-upload"] };
  if (schema["x-adapter"] && schema.type !== "array") return { as: "adapter", type: schema["x-adapter"] };
  if (schema.enum) return { as: "choice", options: schema.enum, also: schema["x-also"] ?? [] };
  if (schema.type === "boolean") return { as: "switch" };
  if (schema.type === "integer" || schema.type === "number") {
    const whole = schema.type === "integer";
    const wide = (schema.maximum ?? schema.exclusiveMaximum ?? 100) - (schema.minimum ?? schema.exclusiveMinimum ?? 0);
    const step = schema.multipleOf ?? (whole ? 1 : wide <= 2 ? 0.05 : 0.5);
    // An end that is excluded is a step away.
    const min = schema.minimum ?? (schema.exclusiveMinimum === undefined ? undefined : schema.exclusiveMinimum + step);
    const max = schema.maximum ?? (schema.exclusiveMaximum === undefined ? undefined : schema.exclusiveMaximum - step);
    return { as: "number", whole, min, max, step };
  }
  if (schema.type === "array") {
    const of: Schema = schema["x-adapter"] ? { type: "string", "x-adapter": schema["x-adapter"] } : (schema.items ?? {});
    return { as: "list", of, most: schema.maxItems };
  }
  if (schema.type === "object" || schema.properties) {
    return { as: "group", of: Object.entries(schema.properties ?? {}), required: schema.required ?? [] };
  }
  return { as: "text", long: (schema.maxLength ?? 0) >= 1000 };
}

/** A slider helps where both ends are known and near. */
export const slides = (input: Input): boolean =>
  input.as === "number" && input.min !== undefined && input.max !== undefined && input.max - input.min <= 1000;

/** A parameter's name as people read it. */
export const named = (name: string): string => name.replaceAll("_", " ").replace("num inference steps", "steps");
