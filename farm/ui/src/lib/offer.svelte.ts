// What can this farm draw: which stage kinds, chains, checkpoints and adapters?

import { get, part, query, Refused } from "./api";
import { tell, tried } from "./toast.svelte";
import type { AdapterView, CatalogView, ChainView, CheckpointView, KindView } from "./types";

/** So much of a description stands in a menu. */
const CUT = 70;

export const offer = $state<{
  kinds: Record<string, KindView>;
  chains: ChainView[];
  checkpoints: CheckpointView[];
  adapters: AdapterView[];
  known: boolean;
}>({ kinds: {}, chains: [], checkpoints: [], adapters: [], known: false });

let asking: Promise<void> | undefined;

/** Asks the farm anew; who asks meanwhile waits for the same answer. Throws Refused. */
export const look = (): Promise<void> => (asking ??= ask().finally(() => (asking = undefined)));

/** Waits until it is known what the farm can draw; where it cannot be, that is told. */
export async function isKnown(): Promise<boolean> {
  if (!offer.known) await tried(look());
  return offer.known;
}

async function ask(): Promise<void> {
  const [kinds, chains, catalog] = await Promise.all([
    get<KindView[]>("stages"),
    named(),
    get<CatalogView>("catalog"),
  ]);
  Object.assign(offer, {
    kinds: Object.fromEntries(kinds.map((one) => [one.kind, one])),
    chains,
    ...catalog,
    known: true,
  });
}

/** The chains that have a name; while the store is away, the catalog's. Throws Refused. */
async function named(): Promise<ChainView[]> {
  try {
    return await get<ChainView[]>("chains");
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 503) throw error;
    tell("Saved chains are not listed: the farm's store does not answer.", "error");
    return await get<ChainView[]>(query("chains", { saved: "false" }));
  }
}

/** Asks which chains are saved now; those that are known stay where the farm does not say. */
export async function lookAtChains(): Promise<void> {
  const found = await get<ChainView[]>("chains").catch(() => offer.chains);
  // An open menu is left alone where nothing has changed.
  if (JSON.stringify(found) !== JSON.stringify(offer.chains)) offer.chains = found;
}

/** A named chain in a menu: its name, and the begin of what it gives. */
export function inMenu(one: ChainView): string {
  const [line = ""] = one.description.split("\n");
  return `${one.name}${line ? `: ${line.length > CUT ? `${line.slice(0, CUT)}…` : line}` : ""}`;
}

/** A named chain. Of a saved one the farm is told that it is used here: the images that it names may be named then. */
export function namedChain(name: string): ChainView | undefined {
  const found = offer.chains.find((one) => one.name === name);
  if (found?.saved) void get(`chains/${part(name)}`).catch(() => undefined);
  return found;
}

/** Checkpoints that a stage kind runs with; those that are not pulled last. */
export const checkpointsOf = (kind: string): CheckpointView[] =>
  offer.checkpoints
    .filter((one) => one.kinds.includes(kind))
    .toSorted((one, other) => Number(other.pulled) - Number(one.pulled));

/** The checkpoint that a stage has where it names none. */
export const defaultOf = (kind: string): CheckpointView | undefined =>
  offer.checkpoints.find((one) => one.default_for.includes(kind));
