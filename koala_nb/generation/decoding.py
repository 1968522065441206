"""Latents -> images, as the pipeline itself decodes them, with a second try in float32."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from koala_nb.models.load import Pipeline


def decode(pipe: "Pipeline", latents: "torch.Tensor") -> "list[tuple[Image.Image, dict[str, Any]]]":
    """Turn latents, (n, channels, h, w), into images, as the pipeline itself would.

    SDXL's VAE can overflow in half precision and give a black image: such a one is decoded again
    in float32. Beside each image stand `decoded_in`, the precision that counted, and `finite`,
    which is False where even float32 gave no picture because the latent itself holds NaN.
    """
    import torch

    dtype = decoding_dtype(pipe.vae, hasattr(pipe, "upcast_vae"))
    found = []
    for latent, pixels in zip(latents.split(1), _decode_in(pipe, latents, dtype).split(1)):
        used = dtype
        if used != torch.float32 and _is_broken(pixels):
            used = torch.float32
            pixels = _decode_in(pipe, latent, used)
        finite = bool(torch.isfinite(pixels).all())
        if not finite:
            pixels = torch.nan_to_num(pixels, nan=-1.0)
        image = pipe.image_processor.postprocess(pixels, output_type="pil")[0]
        how = {"decoded_in": str(used).removeprefix("torch."), "finite": finite}
        found.append((image, how))
    return found


def decoding_dtype(vae: Any, is_xl: bool) -> "torch.dtype":
    """The precision that a VAE decodes in: its own, or float32 where SDXL's asks for it."""
    import torch

    upcast = is_xl and vae.dtype == torch.float16 and vae.config.force_upcast
    return torch.float32 if upcast else vae.dtype


def _is_broken(pixels: "torch.Tensor") -> bool:
    """Whether decoded pixels, -1 to 1, hold NaN or infinity or are black all over."""
    return not bool(pixels.isfinite().all()) or bool((pixels <= -1).all())


def _decode_in(pipe: Any, latent: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """Decode latents as the U-Net leaves them, with the pipeline's watermark."""
    latent = unscale(pipe.vae.config, latent.to(dtype)).to(pipe._execution_device)
    pixels = decoded(pipe.vae, latent, dtype)
    watermark = getattr(pipe, "watermark", None)
    return watermark.apply_watermark(pixels) if watermark is not None else pixels


def decoded(vae: Any, latent: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """Return what a VAE decodes in a precision, which is its own again afterwards."""
    import torch

    own = vae.dtype
    if dtype != own:
        vae.to(dtype=dtype)
    try:
        with torch.no_grad():
            return vae.decode(latent.to(dtype), return_dict=False)[0]
    finally:
        if dtype != own:
            vae.to(dtype=own)


def unscale(config: Any, latent: "torch.Tensor") -> "torch.Tensor":
    """Undo the scaling (and shift, where the VAE has one) that latents are drawn in."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return latent / config.scaling_factor
    shape = (1, -1, 1, 1)
    return latent * latent.new_tensor(std).view(shape) / config.scaling_factor + (
        latent.new_tensor(mean).view(shape)
    )
