"""SFT's Table 1: fourteen attacks on CIFAR-10 and eleven on ImageNet, and five defenses.

    python experiments/sft_table1.py --debug
    python experiments/sft_table1.py --data-dir ~/tensorflow_datasets --out runs

`sft_tables.py` has the protocol and the other tables.
"""

from _paper_table import main
from sft_tables import SFT, TABLES

if __name__ == "__main__":
    main(SFT, {"table1": TABLES["table1"]}, description=__doc__)
