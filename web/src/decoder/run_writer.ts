/** A mask written as run lengths, column by column from top to bottom, without making it. */

import type { Box, Size } from "../forms";

/** lengths: of 0 and 1 in turn, 0 first. box: right and bottom exclusive, all 0 when the mask is empty. */
export interface Runs {
  readonly lengths: number[];
  readonly size: Size;
  readonly area: number;
  readonly box: Box;
}

export class RunWriter {
  private readonly lengths: number[] = [];
  private readonly height: number;
  private readonly width: number;
  private value: 0 | 1 = 0;
  private last = 0; // where the value last changed
  private column = 0;
  private area = 0;
  private left = Number.POSITIVE_INFINITY;
  private right = 0;
  private top = Number.POSITIVE_INFINITY;
  private bottom = 0;

  constructor(size: Size) {
    [this.height, this.width] = size;
  }

  /** Columns come in order; each begins with 0. */
  startColumn(x: number): void {
    // A run that goes on into this column is undone by `set` when the column begins with 1.
    this.set(this.height, 0);
    this.column = x;
  }

  /** From row y of the column on the mask has this value. Rows come in order. */
  set(y: number, value: 0 | 1): void {
    if (value === this.value) return;
    const at = this.column * this.height + y;
    if (value === 1) {
      this.left = Math.min(this.left, this.column);
      this.right = this.column + 1;
      this.top = Math.min(this.top, y);
    } else {
      this.area += at - this.last;
      this.bottom = Math.max(this.bottom, y);
    }
    if (value === 1 && at === this.last && this.lengths.length) {
      // Nothing lies between: the run of the column before goes on.
      const before = this.lengths.pop()!;
      this.area -= before;
      this.last = at - before;
    } else {
      this.lengths.push(at - this.last);
      this.last = at;
    }
    this.value = value;
  }

  finish(): Runs {
    this.set(this.height, 0);
    const end = this.height * this.width;
    if (this.last < end) this.lengths.push(end - this.last);
    const box: Box = this.area ? [this.left, this.top, this.right, this.bottom] : [0, 0, 0, 0];
    return { lengths: this.lengths, size: [this.height, this.width], area: this.area, box };
  }
}
