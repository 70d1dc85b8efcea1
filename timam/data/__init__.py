"""Captioned pictures: the data sets, their readers, records and batches."""

from timam.data.datasets import DATASETS, load_dataset, read_dataset
from timam.data.records import SPLITS, DataError, Dataset, Record, Split

__all__ = ["DATASETS", "SPLITS", "DataError", "Dataset", "Record", "Split", "load_dataset", "read_dataset"]
