//! Contract types, selectors, errors and bytecode, generated from `contracts/artifacts` at build time: Rust has no
//! second copy of an interface that could drift (R6). Nothing here is written by hand.

#![allow(missing_docs, clippy::too_many_arguments, clippy::pub_underscore_fields)]

/// One module per contract: two of them know an `IERC20` and must not clash.
pub mod settlement {
    alloy_sol_types::sol!(
        #[derive(Debug, PartialEq, Eq)]
        BatchSettlement,
        "../../contracts/artifacts/BatchSettlement.json"
    );
}
pub mod collector {
    alloy_sol_types::sol!(
        #[derive(Debug, PartialEq, Eq)]
        Erc3009Collector,
        "../../contracts/artifacts/Erc3009Collector.json"
    );
}
pub mod registry {
    alloy_sol_types::sol!(
        #[derive(Debug, PartialEq, Eq)]
        ProviderRegistry,
        "../../contracts/artifacts/ProviderRegistry.json"
    );
}
pub mod models {
    alloy_sol_types::sol!(
        #[derive(Debug, PartialEq, Eq)]
        ModelRegistry,
        "../../contracts/artifacts/ModelRegistry.json"
    );
}
pub mod token {
    alloy_sol_types::sol!(
        #[derive(Debug, PartialEq, Eq)]
        TestUSD,
        "../../contracts/artifacts/TestUSD.json"
    );
}
pub mod parameters {
    alloy_sol_types::sol!(
        #[derive(Debug, PartialEq, Eq)]
        Parameters,
        "../../contracts/artifacts/Parameters.json"
    );
}
pub mod court {
    alloy_sol_types::sol!(
        #[derive(Debug, PartialEq, Eq)]
        Court,
        "../../contracts/artifacts/Court.json"
    );
}
pub mod trial {
    alloy_sol_types::sol!(
        #[derive(Debug, PartialEq, Eq)]
        Trial,
        "../../contracts/artifacts/Trial.json"
    );
}
pub mod judge {
    alloy_sol_types::sol!(
        #[derive(Debug, PartialEq, Eq)]
        Judge,
        "../../contracts/artifacts/Judge.json"
    );
}
