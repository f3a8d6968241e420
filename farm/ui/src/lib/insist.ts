// What if a picture cannot be fetched at first?

const TRIES = 4;
/** Before each further try a picture is waited for so much longer. */
const AGAIN_MS = 3000;

/** Has a picture that could not be fetched be asked for again, a few times: the farm makes few thumbnails at once. */
export function insist(img: HTMLImageElement): () => void {
  let [lost, times, timer] = ["", 0, 0];
  const failed = (): void => {
    times = img.src === lost ? times + 1 : 1;
    lost = img.src;
    clearTimeout(timer);
    if (times <= TRIES) timer = window.setTimeout(() => img.src === lost && (img.src = lost), AGAIN_MS * times);
  };
  img.addEventListener("error", failed);
  return () => {
    clearTimeout(timer);
    img.removeEventListener("error", failed);
  };
}
