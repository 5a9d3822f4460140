"""Predict photos by the model beside this file, exported by metricloss_pl. Needs onnxruntime, numpy and Pillow."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

SESSION = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])
METADATA = {name: json.loads(value) for name, value in SESSION.get_modelmeta().custom_metadata_map.items()}
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientations as transpositions of Pillow


def decode(image, channels):
    """Return an image of Pillow as (H, W, channels), uint8; float32 in [0, 1] if it has more than 8 bits."""
    image.load()  # a TIFF file is turned by it
    if channels in (1, 3):
        image = image.transpose(TURNS[turn]) if (turn := image.getexif().get(0x0112)) in TURNS else image
        if image.mode.startswith(("I", "F")):
            deep = np.asarray(image).astype(np.float32) / (1 if image.mode == "F" else 65535)
            return np.repeat(deep[..., None], channels, axis=2)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(image.height, image.width, channels)


def center(length, size):
    """Return the positions of the `size` pixels at the center; those outside of the image are mirrored into it."""
    positions = (np.arange(size) + (length - size) // 2) % (2 * (length - 1) or 1)
    return np.minimum(positions, 2 * (length - 1) - positions)


def predict(path):
    """Return the calibrated probabilities of all classes for a photo, prepared as the training images were."""
    with Image.open(path) as image:
        array = decode(image, METADATA["in_channels"])
    if side := METADATA["resize"]:  # the shorter one
        size = [int(side * length / min(array.shape[:2])) for length in (array.shape[1], array.shape[0])]
        array = np.dstack([Image.fromarray(band).resize(size, Image.BILINEAR) for band in array.transpose(2, 0, 1)])
    if side := METADATA["image_size"]:
        array = array[center(array.shape[0], side)][:, center(array.shape[1], side)]
    if METADATA["input"] == "float32" and array.dtype == np.uint8:
        array = array.astype(np.float32) / 255
    return SESSION.run(["probabilities"], {"images": array.transpose(2, 0, 1)[None]})[0][0]


if __name__ == "__main__":
    photos, status = sys.argv[1:] or sys.exit(f"usage: python {sys.argv[0]} PHOTO [PHOTO ...]"), 0
    for photo in photos:
        try:
            found = predict(photo)
            print(photo, *[f"{METADATA['class_names'][i]}\t{found[i]:.4f}" for i in np.argsort(-found)[:2]], sep="\t")
        except Exception as error:  # of any kind, if it is no image; more than 8 bits need an export as float32
            print(f"{photo}: {error}", file=sys.stderr)
            status = 1
    sys.exit(status)
