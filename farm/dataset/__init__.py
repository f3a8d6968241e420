"""How do a million rows become a dataset that loads in one line?

::

    a file ── reading ─> rows ── planning ─> samples ── feeding ─> jobs ── sharding ─> shards ── exporting ─> a dataset

A dataset is a bulk run; a **sample** is one picture of it, a **shard** so many samples, the unit of resume. All that is
needed to go on lies in the store, under `datasets/<name>/`; the ledger only holds the jobs of the shards in work::

    plan.json                   what was asked for and what it means; written last, so that a plan is whole or absent
    plan/<digest>/00042.jsonl.gz   the samples of one shard, below the first 16 digits of the plan's digest
    asked.json, refused.json    what was asked for from afar, and why it is not possible; tries.json: how often it ended
    control.json                what the operator wants of it: state, priority, which try
    shards/00042.tar            the samples of one shard as WebDataset has them: KEY.png, KEY.txt, KEY.json
    shards/00042.parquet        one row a sample, without the picture: what is known of it, for filters
    shards/00042_scores.parquet what was measured of its pictures later, if anything
    shards/00042_stats.json     counts, hashes and what failed; written last, so that a shard is whole or absent; one
                                that is tried again is written anew in its place, its stats last
    progress.json, trouble.json how far its feeder is, and why it does not go on

| room | question |
|---|---|
| `spec` | what is a dataset asked to be, what is a sample? |
| `sources` | where do a file's bytes lie, and what are they once unpacked? |
| `reading` | which rows does a file hold? (`lines`, `tables`, `objects`, `columnar`: by its format) |
| `wildcards` | which lines does a wildcard stand for? |
| `prompts` | which prompts does a template mean? (`syntax`: how it is read; `options`: how it is chosen from) |
| `images` | which input image does a cell name? |
| `moulds` | what do samples share that differ in nothing but prompts, seed and row? |
| `parameters` | in which parameters do samples differ, and how does a shard hold their values? |
| `axes` | are the chain and its axes possible, whatever stands in the rows? |
| `samples` | which samples do the rows mean, and is each of them possible? |
| `planning` | how do the rows of a file become a plan? |
| `drafts` | what would a file's dataset be: how many samples, at what cost, how large? |
| `files`, `peeking` | where does a file lie that came over the network, and what does it begin with? |
| `previewing` | what would its first rows become? |
| `folder` | where does it lie, and how is it written whole? |
| `asking` | how is a dataset asked for from afar, and who plans it? |
| `leftovers` | what is left of asking for datasets, and when does it go? |
| `status` | how far is a dataset? |
| `seats` | which process feeds which dataset? |
| `serve` | which datasets are fed, and by which process? |
| `feeding` | how do samples become jobs, and ended jobs shards? |
| `publishing` | how do the pictures of ended jobs become a shard? |
| `metrics` | what is counted of datasets, for Prometheus? |
| `sharding` | how does a shard look, byte by byte? |
| `tars` | how is a sample found in a tar, and put into one? |
| `encoding` | how does a picture become WebP or JPEG without forgetting what made it? |
| `quality` | what is measured of a picture? |
| `scores` | what was measured of a shard's pictures later, by what, and in which tar? |
| `shelves` | from where are shards read, and to where is a dataset written? |
| `fetched` | how does a dataset lie in a folder of its own, far from its farm? |
| `choosing` | which samples does an export want, and why not the others? |
| `forms` | how does one split of a dataset look in each form? |
| `exporting` | how do shards become a dataset in the form that somebody wants, without what they don't want? |
| `card` | what does the dataset say of itself? |
| `verifying` | is what lies in the shards what was made? |
| `collecting` | what becomes of a dataset's shards, wherever they are read from: exported, verified, told of? |
| `desk` | what can be asked of a farm's datasets? |
"""
