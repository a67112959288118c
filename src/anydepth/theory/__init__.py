"""The theory behind progression, put to the test on measured states, each number beside what chance would give.

In reading order: `means` (averages with intervals), `paths` and their nulls, `geometry` (Theorem 2.1), `closeness`
(Theorem 2.2), `collapse` (neural collapse), `updates` (what blocks write); `findings` is all of it as one value,
`observing` the pass that collects what it takes, and `examine` does everything. Definitions are in docs/theory.md.
"""
