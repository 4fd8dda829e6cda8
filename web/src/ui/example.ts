/** A still life drawn on the spot, for those who have no photograph at hand. */

export async function drawExample(): Promise<File> {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [960, 640];
  const context = canvas.getContext("2d") as CanvasRenderingContext2D;
  const fill = (from: string, to: string, x0: number, y0: number, x1: number, y1: number): void => {
    const gradient = context.createLinearGradient(x0, y0, x1, y1);
    gradient.addColorStop(0, from);
    gradient.addColorStop(1, to);
    context.fillStyle = gradient;
  };
  const ball = (x: number, y: number, r: number, light: string, dark: string): void => {
    context.fillStyle = "rgb(60 35 20 / 0.28)";
    context.beginPath();
    context.ellipse(x + r * 0.18, y + r * 0.9, r * 1.05, r * 0.24, 0, 0, 7);
    context.fill();
    const gradient = context.createRadialGradient(x - r * 0.35, y - r * 0.4, r * 0.1, x, y, r);
    gradient.addColorStop(0, light);
    gradient.addColorStop(1, dark);
    context.fillStyle = gradient;
    context.beginPath();
    context.arc(x, y, r, 0, 7);
    context.fill();
  };
  fill("#b9c8cf", "#e4e2d6", 0, 0, 0, 420);
  context.fillRect(0, 0, 960, 420);
  fill("#a8754c", "#7c5233", 0, 400, 0, 640);
  context.fillRect(0, 400, 960, 240);
  context.strokeStyle = "rgb(70 42 22 / 0.25)";
  for (const y of [448, 506, 578]) {
    context.lineWidth = 3;
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(960, y + 6);
    context.stroke();
  }
  // A vase with a stripe, an apple, an orange, a plum, a mug.
  context.fillStyle = "rgb(60 35 20 / 0.28)";
  context.beginPath();
  context.ellipse(268, 520, 112, 24, 0, 0, 7);
  context.fill();
  const vase = new Path2D("M214 150h84c-4 60 52 110 52 220 0 90-36 150-94 150s-94-60-94-150c0-110 56-160 52-220z");
  fill("#3f7f9d", "#1d4258", 160, 0, 350, 0);
  context.fill(vase);
  context.save();
  context.clip(vase);
  context.fillStyle = "#e9d8a8";
  context.fillRect(140, 330, 240, 26);
  context.fillRect(140, 376, 240, 10);
  context.restore();
  ball(470, 470, 82, "#ff7d66", "#a3201d");
  context.strokeStyle = "#4b3420";
  context.lineWidth = 8;
  context.beginPath();
  context.moveTo(470, 396);
  context.quadraticCurveTo(474, 372, 490, 360);
  context.stroke();
  context.fillStyle = "#5f9a3c";
  context.fill(new Path2D("M486 372c18-24 48-26 62-14-18 20-42 26-62 14z"));
  ball(596, 512, 70, "#ffc25a", "#d9731a");
  ball(392, 566, 44, "#a583c9", "#4d2a68");
  context.fillStyle = "rgb(60 35 20 / 0.28)";
  context.beginPath();
  context.ellipse(790, 512, 110, 22, 0, 0, 7);
  context.fill();
  context.strokeStyle = "#d5d8d3";
  context.lineWidth = 22;
  context.beginPath();
  context.arc(866, 424, 44, -1.5, 1.6);
  context.stroke();
  fill("#ffffff", "#b6bdb8", 690, 0, 870, 0);
  context.fill(new Path2D("M690 336h176v140c0 24-14 38-38 38H728c-24 0-38-14-38-38z"));
  context.fillStyle = "#5b3a26";
  context.beginPath();
  context.ellipse(778, 336, 88, 18, 0, 0, 7);
  context.fill();
  const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/png"));
  return new File([blob as Blob], "still life.png", { type: "image/png" });
}
