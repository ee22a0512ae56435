;; resize(height, most, width) -> (width, height): the largest of the same shape in a square.
(module
  (func (export "resize") (param $height i32) (param $most i32) (param $width i32) (result i32 i32)
    (local $longer i32)
    (local.set $longer
      (select (local.get $width) (local.get $height)
        (i32.gt_s (local.get $width) (local.get $height))))
    (if (i32.le_s (local.get $longer) (local.get $most))
      (then (return (local.get $width) (local.get $height))))
    (i32.wrap_i64 (i64.div_s
      (i64.mul (i64.extend_i32_s (local.get $width)) (i64.extend_i32_s (local.get $most)))
      (i64.extend_i32_s (local.get $longer))))
    (i32.wrap_i64 (i64.div_s
      (i64.mul (i64.extend_i32_s (local.get $height)) (i64.extend_i32_s (local.get $most)))
      (i64.extend_i32_s (local.get $longer))))))
