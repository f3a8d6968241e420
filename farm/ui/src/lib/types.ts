// What does the API say? The names are those of /api/v1/openapi.json; tests/ui/test_types.py holds that every field is there.

export type JobState =
  | "queued" | "running" | "paused" | "done" | "failed" | "quarantined" | "cancelled" | "expired" | "deleted";

export interface Snapshot {
  id: string;
  run: string | null;
  state: JobState;
  stage: number;
  stage_count: number;
  kind: string;
  phase: string;
  step: number;
  steps: number;
  progress: number;
  preview: string | null;
  position: number | null;
  waits_for: string | null;
  eta_s: number | null;
  code: string;
  message: string;
  created: string;
  started: string | null;
  ended: string | null;
  tags: string[];
}

export interface StageView {
  index: number;
  kind: string;
  checkpoint: string;
  state: string;
  phase: string;
  step: number;
  steps: number;
  attempt: number;
  code: string;
  message: string;
  crashes: number;
  ooms: number;
  lapses: number;
  mean_s: number | null;
  wall_s: number | null;
  workers: number;
  tags: string[];
  unread: string;
}

export type StageSpec = { kind: string } & Record<string, unknown>;

export interface ChainSpec {
  stages: StageSpec[];
  prompt?: string;
  negative_prompt?: string;
  seed?: number;
  keep?: "none" | "preview" | "image";
  [name: string]: unknown;
}

export interface JobView extends Snapshot {
  owner: string;
  lane: "interactive" | "bulk";
  priority: number;
  seed: number;
  prompt: string;
  deadline: string | null;
  chain: ChainSpec;
  stages: StageView[];
}

export interface JobPage {
  jobs: JobView[];
  next: string | null;
}

export interface RunView {
  id: string;
  owner: string;
  created: string;
  count: number;
  states: Record<string, number>;
  prompt: string;
  progress: number;
  ended: string | null;
}

export interface RunPage {
  runs: RunView[];
  next: string | null;
}

export interface MadeJob {
  id: string;
  seed: number;
  url: string;
}

export interface Made {
  run: string | null;
  count: number;
  idempotency_key: string;
  jobs: MadeJob[];
}

export interface PlannedView {
  index: number;
  kind: string;
  checkpoint: string;
  queue: string;
  takes: string | null;
  emits: string;
  space: string;
  given_size: number[] | null;
  size: number[];
  parameters: Record<string, unknown>;
}

export interface DryRun {
  count: number;
  seed: number | null;
  steps: number;
  pixels: number;
  cost_s: number | null;
  eta_s: number | null;
  stages: PlannedView[];
}

export interface JobAsk {
  chain?: string | ChainSpec;
  prompt?: string | null;
  negative_prompt?: string | null;
  seed?: number | null;
  keep?: "none" | "preview" | "image" | null;
  parameters?: Record<string, unknown>;
  image?: string | null;
  count?: number;
  sweep?: Record<string, unknown[]>[];
  lane?: "interactive" | "bulk";
  priority?: number;
}

export interface Artifact {
  index: number;
  kind: "result" | "intermediate";
  stage: number;
  medium: "image" | "preview";
  sha256: string;
  width: number;
  height: number;
  size_bytes: number | null;
  url: string;
  thumbnail: string;
}

export interface Transition {
  id: string;
  type: string;
  stage: number;
  state: string;
  code: string;
  worker: string | null;
  time: string;
}

export interface Uploaded {
  image: string;
  width: number;
  height: number;
  size_bytes: number;
}

export interface CheckpointView {
  name: string;
  kinds: string[];
  family: string;
  adapter_family: string;
  space: string;
  native: number;
  licence: string;
  pulled: boolean;
  default_for: string[];
  recommended: Record<string, unknown>;
  source: string;
  size_bytes: number;
}

export interface AdapterView {
  name: string;
  type: string;
  family: string;
  licence: string;
  pulled: boolean;
  source: string;
  size_bytes: number;
}

export interface CatalogView {
  checkpoints: CheckpointView[];
  adapters: AdapterView[];
}

export interface ChainView {
  name: string;
  description: string;
  stages: StageSpec[];
  fields: Partial<ChainSpec>;
  owner: string;
  saved: string | null;
}

export interface SaveAsk {
  chain: string | ChainSpec;
  description?: string;
  replace?: boolean;
}

export interface KindView {
  kind: string;
  about: string;
  takes: string[];
  gives: string[];
  scale: number;
  multiple: number;
  parameters: Schema;
  fields: string[][];
}

/** A JSON Schema, as far as pydantic writes one for a stage. */
export interface Schema {
  $ref?: string;
  $defs?: Record<string, Schema>;
  type?: string;
  title?: string;
  description?: string;
  default?: unknown;
  const?: unknown;
  enum?: unknown[];
  anyOf?: Schema[];
  items?: Schema;
  properties?: Record<string, Schema>;
  required?: string[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  multipleOf?: number;
  maxLength?: number;
  minItems?: number;
  maxItems?: number;
  "x-upload"?: string;
  "x-adapter"?: string;
  "x-also"?: string[];
}

export interface QueueView {
  queue: string;
  ready: number;
  running: number;
  workers: number;
  mean_s: number | null;
  wall_s: number | null;
}

export interface WorkerView {
  name: string | null;
  host: string | null;
  pid: number | null;
  state: string;
  draining: boolean;
  isolated_s: number;
  queues: string[];
  running: number;
  device: string;
  memory_bytes: number | null;
  memory_total_bytes: number | null;
  checkpoints: string[];
  jobs: string[];
  per_minute: number;
  images_per_minute: number;
}

/** Stages that were committed in each minute, the oldest first. */
export interface Throughput {
  minutes: string[];
  queues: Record<string, number[]>;
}

export interface TokenView {
  id: string;
  owner: string;
  scopes: string[];
  max_open_jobs: number | null;
  created: string;
  expires: string | null;
}

export interface MadeToken extends TokenView {
  token: string;
}

export interface SessionView {
  owner: string;
  scopes: string[];
  csrf_token: string | null;
  last_event: string;
}

export interface RowErrorView {
  row: number;
  column: string;
  code: string;
  message: string;
}

export interface RowView {
  row: number;
  values: Record<string, string>;
}

export interface FileView {
  id: string;
  name: string;
  format: string;
  size_bytes: number;
  columns: string[];
  rows: RowView[];
  errors: RowErrorView[];
}

export interface SampleView {
  key: string;
  row: number;
  variant: number;
  prompt: string;
  negative_prompt: string;
  seed: number;
  changes: Record<string, unknown>;
  choices: string[];
  columns: Record<string, string>;
}

export interface ColumnView {
  name: string;
  gives: string | null;
}

export interface RowCount {
  row: number;
  samples: number;
}

export interface PreviewView {
  columns: ColumnView[];
  known: string[];
  counts: RowCount[];
  first: SampleView[];
  errors: RowErrorView[];
  sizes: number[][];
  stages: PlannedView[];
  cost_s: number | null;
}

export interface DatasetAsk {
  name: string;
  file: string;
  chain?: string | ChainSpec;
  prompt?: string | null;
  negative_prompt?: string | null;
  columns?: Record<string, string>;
  automatic?: boolean;
  left_out?: string[];
  sweep?: Record<string, unknown[]>[];
  templates?: "off" | "random" | "all";
  wildcards?: Record<string, string[]>;
  variants?: number;
  seed?: number;
  shard_samples?: number;
  image_format?: "png" | "webp" | "jpg";
  image_quality?: number;
  keep?: ("base" | "latents")[];
  partial?: boolean;
}

export interface RefusedView {
  code: string;
  message: string;
  hint: string;
  until: string;
  count: number;
  rows: RowErrorView[];
  errors: WrongField[];
}

export interface TroubleView {
  code: string;
  message: string;
  errors: WrongField[];
}

export interface DatasetView {
  name: string;
  owner: string;
  state: string;
  samples: number;
  done: number;
  failed: number;
  open: Record<string, number>;
  shards: number;
  shards_done: number;
  size_bytes: number;
  rows: number;
  rejected: number;
  priority: number;
  fed: boolean;
  rate: number | null;
  eta_s: number | null;
  refused: RefusedView | null;
  trouble: TroubleView | null;
}

export interface DatasetPage {
  datasets: DatasetView[];
  next: string | null;
}

export interface PlanView {
  identity: string;
  source: string;
  sha256: string;
  chain: ChainSpec;
  sweep: Record<string, unknown[]>[];
  templates: string;
  image_format: string;
  shard_samples: number;
  columns: string[];
  parameters: Record<string, string>;
  sizes: number[][];
  checkpoints: Record<string, unknown>[];
  cost_s: number | null;
  eta_s: number | null;
  size_bytes_most: number;
  rejects: RowErrorView[];
  first: SampleView[];
}

export interface Snippet {
  loader: string;
  text: string;
}

export interface DatasetDetail extends DatasetView {
  plan: PlanView | null;
  load: Snippet[];
}

export interface FailedSample {
  key: string;
  row: number;
  variant: number;
  state: string;
  code: string;
  message: string;
}

export interface FailurePage {
  failures: FailedSample[];
  next: number | null;
}

export interface ShardFile {
  size_bytes: number;
  sha256: string;
  url: string;
}

export interface ShardView {
  shard: number;
  samples: number;
  failed: number;
  tar: ShardFile;
  parquet: ShardFile;
  sheet: string;
}

export interface ShardPage {
  shards: ShardView[];
  damaged: number[];
  next: number | null;
}

export interface WrongField {
  loc: string;
  msg: string;
  code: string;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  code: string;
  detail: string;
  hint: string | null;
  errors: WrongField[];
  request_id: string;
  retry_after: number | null;
  idempotency_key: string | null;
}

export interface PromptView {
  tokens: number | null;
  limit: number;
  unread: string;
}

export interface RecalledView {
  source: string;
  chain: ChainSpec;
  notes: string[];
  loras: LoraView[];
}

export interface QuarantinedView {
  execution: string;
  time: string;
  queue: string;
  code: string;
  message: string;
  attempts: number;
  payload: string;
  jobs: number;
}

export interface FailureView {
  time: string;
  worker: string;
  attempt: number;
  code: string;
  message: string;
  log: string;
}

export interface CaseView extends QuarantinedView {
  failures: FailureView[];
  job_ids: string[];
}

export interface Retried {
  execution: string;
  jobs: string[];
}

export interface WorkflowView {
  workflow: Record<string, unknown>;
  notes: string[];
}

export interface LoraView {
  name: string;
  weight: number;
}

export interface Spec {
  image: { sha256: string; width: number; height: number } | null;
}

export interface Steered {
  count: number;
  more: boolean;
  kept: number;
  hindered: string;
}

export interface Tagged {
  count: number;
}

export interface TagView {
  tag: string;
  count: number;
}
