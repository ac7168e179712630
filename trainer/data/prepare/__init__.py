"""From files of prompts to training, validation and test sets, with an account of every prompt that was left out.

    read -> format -> length -> duplicates -> near duplicates -> contamination -> trivial -> toxicity -> split -> write
              |          |          |               |                 |             |           |
              +----------+----------+--- removed: id, stage, rule, reason, of what -+-----------+

The order is fixed. Cheap and certain checks come first; duplicates go before contamination, so that one copy is judged and
not five; the split comes last, over what is really used. A stage is a pure function `entries -> Sifted(kept, removed)`;
files are touched in `run` alone.

Invariants: kept and removed together are what was read; the order of rows decides nothing; preparing a training set again
with the same settings removes nothing; the same input gives the same bytes.
"""
