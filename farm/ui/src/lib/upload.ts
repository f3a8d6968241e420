// How does a picture get from this browser to the farm?

import { call, Refused } from "./api";
import type { Given } from "./form.svelte";
import type { RecalledView, Uploaded } from "./types";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const SHOWN_SIDE = 320;

/** Uploads a picture; what is shown of it is small enough to be kept with the form. Throws Refused. */
export async function upload(file: Blob): Promise<Given> {
  const found = await call<Uploaded>("POST", "uploads", TYPES.includes(file.type) ? file : new Blob([file]));
  return { image: found.image, width: found.width, height: found.height, shown: await small(file) };
}

/** How a picture was made, or what a workflow of ComfyUI's makes; null where it does not say. Throws Refused. */
export async function read(file: Blob): Promise<RecalledView | null> {
  try {
    return await call<RecalledView>("POST", "pictures/read", TYPES.includes(file.type) ? file : new Blob([file]));
  } catch (error) {
    if (error instanceof Refused && error.status === 422) return null;
    throw error;
  }
}

/** A small picture as a data URL; "" where the browser cannot read it. */
async function small(file: Blob): Promise<string> {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, SHOWN_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d")!.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/webp", 0.85);
  } catch {
    return "";
  }
}

/** The first file among what was dropped that may be a chain, or a workflow of ComfyUI's. */
export const chainFileIn = (data: DataTransfer | null): File | undefined => [...(data?.files ?? [])].find((one) => /\.(json|ya?ml)$/i.test(one.name));

/** The first picture among what was dropped or pasted. */
export function pictureIn(data: DataTransfer | null): File | undefined {
  return [...(data?.files ?? [])].find((file) => file.type.startsWith("image/"));
}
