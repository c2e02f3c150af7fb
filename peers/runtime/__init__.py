"""The process of one device. It joins the protocol, the learner, the links and the clock."""
