//! Points, questions and exact answers: the bundled sample of WordNet, or a folder of the same shape.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use half::f16;
use npyz::{DType, NpyFile, TypeChar};

/// Rows of equal length, flat.
#[derive(Debug, Clone, Default)]
pub struct Matrix {
    /// Row after row.
    pub values: Vec<f32>,
    /// Values in a row.
    pub columns: usize,
}

impl Matrix {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.columns).unwrap_or(0)
    }
    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }
}

/// Exact answers: for each question the nearest rows, best first.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    rows: Vec<i32>,
    columns: usize,
}

impl Truth {
    /// The `k` nearest rows of a question, fewer if fewer are known.
    pub fn nearest(&self, question: usize, k: usize) -> &[i32] {
        let start = question * self.columns;
        &self.rows[start..start + k.min(self.columns)]
    }
    /// Number of questions.
    pub fn questions(&self) -> usize {
        self.rows.len().checked_div(self.columns).unwrap_or(0)
    }
    /// How many neighbours each question has.
    pub fn depth(&self) -> usize {
        self.columns
    }
}

/// One text with its place in the matrix of vectors.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Text {
    /// Row in the matrix.
    pub id: usize,
    /// The text itself.
    pub text: String,
    /// Points only: its kind.
    #[serde(default)]
    pub category: String,
}

/// Everything that the demo works on.
#[derive(Debug)]
pub struct Dataset {
    /// One text a row of `vectors`.
    pub points: Vec<Text>,
    /// Their embeddings.
    pub vectors: Matrix,
    /// One text a row of `query_vectors`.
    pub questions: Vec<Text>,
    /// Their embeddings.
    pub query_vectors: Matrix,
    /// Exact answers by inner product.
    pub truth: Truth,
}

impl Dataset {
    /// The sample that the binary carries.
    pub fn bundled() -> Result<Self> {
        Self::from_parts(
            include_bytes!("../sample/points.jsonl.gz"),
            include_bytes!("../sample/vectors.npy"),
            include_bytes!("../sample/queries.jsonl"),
            include_bytes!("../sample/queries.npy"),
            include_bytes!("../sample/truth.npy"),
        )
    }

    /// A folder with points.jsonl.gz, vectors.npy, queries.jsonl, queries.npy and truth.npy.
    pub fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            fs_err::read(folder.join(name))
                .context("a data folder holds points.jsonl.gz, vectors.npy, queries.jsonl, queries.npy and truth.npy")
        };
        Self::from_parts(
            &read("points.jsonl.gz")?,
            &read("vectors.npy")?,
            &read("queries.jsonl")?,
            &read("queries.npy")?,
            &read("truth.npy")?,
        )
        .with_context(|| format!("reading {}", folder.display()))
    }

    fn from_parts(points: &[u8], vectors: &[u8], questions: &[u8], query_vectors: &[u8], truth: &[u8]) -> Result<Self> {
        let set = Dataset {
            points: texts(GzDecoder::new(points)).context("points.jsonl.gz")?,
            vectors: matrix(vectors).context("vectors.npy")?,
            questions: texts(questions).context("queries.jsonl")?,
            query_vectors: matrix(query_vectors).context("queries.npy")?,
            truth: self::truth(truth).context("truth.npy")?,
        };
        ensure!(
            set.points.len() == set.vectors.rows(),
            "points.jsonl.gz has {} lines, vectors.npy {} rows",
            set.points.len(),
            set.vectors.rows()
        );
        ensure!(
            set.questions.len() == set.query_vectors.rows(),
            "queries.jsonl has {} lines, queries.npy {} rows",
            set.questions.len(),
            set.query_vectors.rows()
        );
        ensure!(
            set.truth.questions() == set.questions.len(),
            "truth.npy has {} rows for {} questions",
            set.truth.questions(),
            set.questions.len()
        );
        ensure!(
            set.vectors.columns == set.query_vectors.columns,
            "vectors have {} dimensions, questions {}",
            set.vectors.columns,
            set.query_vectors.columns
        );
        ensure!(
            set.points.iter().enumerate().all(|(row, text)| row == text.id),
            "the ids of points.jsonl.gz are not the rows 0, 1, 2 ..."
        );
        Ok(set)
    }
}

fn texts(reader: impl Read) -> Result<Vec<Text>> {
    BufReader::new(reader)
        .lines()
        .enumerate()
        .map(|(line, text)| serde_json::from_str(&text?).with_context(|| format!("line {}", line + 1)))
        .collect()
}

/// Reads a two-dimensional .npy of float16 or float32.
pub fn matrix(bytes: &[u8]) -> Result<Matrix> {
    let file = NpyFile::new(bytes).context("not an .npy file")?;
    let columns = columns_of(&file)?;
    let values = match element(&file)? {
        (TypeChar::Float, 2) => file.into_vec::<f16>()?.into_iter().map(f16::to_f32).collect(),
        (TypeChar::Float, 4) => file.into_vec::<f32>()?,
        (kind, size) => bail!("elements are {kind:?} of {size} bytes; float16 or float32 is expected"),
    };
    Ok(Matrix { values, columns })
}

/// Reads a two-dimensional .npy of int32.
pub fn truth(bytes: &[u8]) -> Result<Truth> {
    let file = NpyFile::new(bytes).context("not an .npy file")?;
    let columns = columns_of(&file)?;
    match element(&file)? {
        (TypeChar::Int, 4) => Ok(Truth { rows: file.into_vec::<i32>()?, columns }),
        (kind, size) => bail!("elements are {kind:?} of {size} bytes; int32 is expected"),
    }
}

fn columns_of<R: Read>(file: &NpyFile<R>) -> Result<usize> {
    ensure!(file.order() == npyz::Order::C, "column-major arrays are not read: save with order C");
    match *file.shape() {
        [_, columns] if columns > 0 => Ok(usize::try_from(columns)?),
        ref shape => bail!("the shape is {shape:?}; two dimensions are expected"),
    }
}

fn element<R: Read>(file: &NpyFile<R>) -> Result<(TypeChar, u64)> {
    match file.dtype() {
        DType::Plain(kind) => Ok((kind.type_char(), kind.size_field())),
        _ => bail!("structured arrays are not read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_sample_is_whole_and_its_truth_is_exact() {
        let set = Dataset::bundled().expect("the sample is part of the binary");
        assert!(set.points.len() >= 5_000, "{} points", set.points.len());
        assert_eq!(set.vectors.columns, 384);
        for question in [0, 57, 199] {
            let query = set.query_vectors.row(question);
            let score = |row: usize| -> f64 {
                set.vectors.row(row).iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let mut rows: Vec<usize> = (0..set.vectors.rows()).collect();
            rows.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
            let exact: Vec<i32> = rows[..10].iter().map(|row| *row as i32).collect();
            assert_eq!(set.truth.nearest(question, 10), exact);
        }
    }

    #[test]
    fn what_is_no_matrix_is_refused_with_a_reason() {
        assert!(matrix(b"not an array").is_err());
        assert!(
            matrix(include_bytes!("../sample/truth.npy"))
                .expect_err("other elements")
                .to_string()
                .contains("float16 or float32")
        );
        assert!(
            truth(include_bytes!("../sample/queries.npy")).expect_err("other elements").to_string().contains("int32")
        );
    }
}
