"""Images that stay where they are until they are asked for."""

from typing import NamedTuple, Protocol

from PIL import Image


class LabelledImage(NamedTuple):
    """One labelled image, decoded."""

    image: Image.Image  # in mode "RGB" or "L"
    label: int  # from 0


class Records(Protocol):
    """A split of a data set, read image by image; picklable, so that worker processes can read."""

    num_classes: int  # labels are 0, …, num_classes − 1
    class_names: tuple[str, ...] | None  # what the classes are called, if that is known

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, index: int) -> LabelledImage:
        """Decodes one image.

        Raises:
          ValueError: if it cannot be decoded, with its file's name or its number.
        """
