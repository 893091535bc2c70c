"""Images that stay where they are until they are asked for."""

from typing import NamedTuple, Protocol

from PIL import Image


class Record(NamedTuple):
    """One labelled image, decoded.

    Attributes:
      image: in mode "RGB" or "L".
      label: from 0.
    """

    image: Image.Image
    label: int


class Records(Protocol):
    """A split of a data set, read image by image; picklable, so that worker processes can read.

    Attributes:
      num_classes: labels are 0, …, num_classes − 1.
      class_names: what the classes are called; None if that is not known.
    """

    num_classes: int
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, index: int) -> Record:
        """Decodes one image.

        Raises:
          ValueError: if it cannot be decoded, with its file's name or its number.
        """
