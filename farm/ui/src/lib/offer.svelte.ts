// What can this farm draw: which stage kinds, chains, checkpoints and adapters?

import { get } from "./api";
import type { AdapterView, CatalogView, ChainView, CheckpointView, KindView } from "./types";

export const offer = $state<{
  kinds: Record<string, KindView>;
  chains: ChainView[];
  checkpoints: CheckpointView[];
  adapters: AdapterView[];
  known: boolean;
}>({ kinds: {}, chains: [], checkpoints: [], adapters: [], known: false });

/** Asks the farm anew. Throws Refused. */
export async function look(): Promise<void> {
  const [kinds, chains, catalog] = await Promise.all([
    get<KindView[]>("stages"),
    get<ChainView[]>("chains"),
    get<CatalogView>("catalog"),
  ]);
  Object.assign(offer, {
    kinds: Object.fromEntries(kinds.map((one) => [one.kind, one])),
    chains,
    ...catalog,
    known: true,
  });
}

/** Checkpoints that a stage kind runs with; those that are not pulled last. */
export const checkpointsOf = (kind: string): CheckpointView[] =>
  offer.checkpoints
    .filter((one) => one.kinds.includes(kind))
    .toSorted((one, other) => Number(other.pulled) - Number(one.pulled));

/** The checkpoint that a stage has where it names none. */
export const defaultOf = (kind: string): CheckpointView | undefined =>
  offer.checkpoints.find((one) => one.default_for.includes(kind));
