//! stub
/// stub
#[derive(Clone)]
pub struct Builder {}
impl Builder {
    /// stub
    pub fn new(_threads: usize) -> Builder { Builder {} }
}
