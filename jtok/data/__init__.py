"""Image data as Grain pipelines: embedded real images, and files of the usual formats."""

from jtok.data.arrayrecord import ArrayRecordSource, write_arrayrecord
from jtok.data.faces import faces
from jtok.data.folder import FolderSource
from jtok.data.images import Encoded, Images
from jtok.data.parquet import ParquetSource
from jtok.data.photographs import photos
from jtok.data.pipeline import DATASETS, FORMATS, batches, image_files, make_dataset
from jtok.data.questions import digit_questions
from jtok.data.scenes import digit_scenes
from jtok.data.webdataset import WebDatasetSource

__all__ = [
    "DATASETS",
    "FORMATS",
    "ArrayRecordSource",
    "Encoded",
    "FolderSource",
    "Images",
    "ParquetSource",
    "WebDatasetSource",
    "batches",
    "digit_questions",
    "digit_scenes",
    "faces",
    "image_files",
    "make_dataset",
    "photos",
    "write_arrayrecord",
]
