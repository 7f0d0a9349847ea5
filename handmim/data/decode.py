"""The reader of image files (`handmim.images.decode`) under the name that datasets know."""

from handmim.images.decode import UnreadableImage, decode_rgb, read_image, read_rgb, turbo

__all__ = ["UnreadableImage", "decode_rgb", "read_image", "read_rgb", "turbo"]
