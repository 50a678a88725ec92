"""FT-SAM's Table 1: ten attacks on CIFAR-10, PreAct-ResNet18, and nine defenses with 5 % clean images.

    python experiments/ft_sam_table1.py --debug
    python experiments/ft_sam_table1.py --data-dir ~/tensorflow_datasets --out runs

`ft_sam_tables.py` has the protocol and the other tables.
"""

from _paper_table import main
from ft_sam_tables import FT_SAM, TABLES

if __name__ == "__main__":
    main(FT_SAM, {"table1": TABLES["table1"]}, description=__doc__)
